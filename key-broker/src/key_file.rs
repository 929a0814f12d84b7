//! Files that hold keys: read only if nobody but their owner, who must be this process's user or root, can read or write them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::config::Error;

/// No key is longer.
const MAX_BYTES: u64 = 64 << 10;
/// What others may do with a file: nothing.
const OTHERS: u32 = 0o077;

fn contents(path: &Path, why: String) -> Error {
    Error::Contents { path: path.to_owned(), why }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), source }
}

/// The text of a key file.
pub fn read(path: &Path) -> Result<Zeroizing<String>, Error> {
    // What is judged is what is read: the open file, whatever its name means a moment later.
    let file = File::open(path).map_err(io(path))?;
    let metadata = file.metadata().map_err(io(path))?;
    let own = std::fs::metadata("/proc/self").map_err(io(Path::new("/proc/self")))?.uid();
    let name = path.display();
    if !metadata.is_file() {
        return Err(contents(path, "a key must be in a regular file".to_owned()));
    }
    if metadata.uid() != own && metadata.uid() != 0 {
        return Err(contents(
            path,
            format!("the key belongs to user {}, and this is user {own}: chown {own} {name}", metadata.uid()),
        ));
    }
    if metadata.mode() & OTHERS != 0 {
        return Err(contents(
            path,
            format!("others can use this key (mode {:04o}): chmod 600 {name}", metadata.mode() & 0o7777),
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(io(path))?;
    Ok(text)
}

/// Reads a key of 32 bytes as 64 hexadecimal digits.
pub fn read_hex(path: &Path) -> Result<Zeroizing<[u8; 32]>, Error> {
    from_hex(&read(path)?).ok_or_else(|| contents(path, "not 64 hexadecimal digits".to_owned()))
}

/// 64 hexadecimal digits.
pub fn from_hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(text.trim(), &mut key[..]).ok().map(|()| key)
}

/// Writes a key to a file that does not exist yet.
pub fn create(path: &Path, text: &str) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(io(path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_that_others_can_use_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, &"ab".repeat(32)).unwrap();
        for (mode, good) in [
            (0o600, true),
            (0o400, true),
            (0o700, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
            (0o602, false),
            (0o610, false),
            (0o644, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match (read_hex(&path), good) {
                (Ok(key), true) => assert_eq!(*key, [0xab; 32]),
                (Err(error), false) => {
                    assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
                }
                (result, _) => panic!("{mode:o}: {:?}", result.map(drop)),
            }
        }
        assert!(create(&path, "again").is_err(), "a key is never overwritten");
        assert!(read(dir.path()).is_err());
    }

    #[test]
    fn a_key_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, &"ab".repeat(32)).unwrap();
        // Only root can give a file away; others cannot make the case.
        if std::os::unix::fs::chown(&path, Some(4711), None).is_ok() {
            assert!(read(&path).unwrap_err().to_string().contains("user 4711"));
        }
    }
}
