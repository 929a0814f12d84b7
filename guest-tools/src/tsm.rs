//! Evidence by Linux's configfs-tsm (Documentation/ABI/testing/configfs-tsm-report).
//!
//! An entry is a directory that everybody in the guest may use: containers with PIDs of their own, a program that was killed
//! and left its entry behind. So names are random, and the generation tells whether somebody else wrote between our write and
//! our read. A platform that is busy, or answers late, is asked again; a bound ends that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the kernel has it.
pub const BASE: &str = "/sys/kernel/config/tsm/report";

/// Names that are tried. Random ones collide when somebody makes them collide.
const NAMES: usize = 16;
/// Times that evidence is asked for.
const TRIES: usize = 8;
/// Between two of them. A quote takes seconds; the kernel gives up on one after 30 and stays busy until it comes.
const PAUSE: Duration = Duration::from_secs(5);

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file system call failed.
    #[error("{path}: {source}")]
    Io {
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The platform is busy with another request, and stays it.
    #[error(
        "the platform was busy with another request {TRIES} times: an earlier one may still wait for the host's quoting service"
    )]
    Busy,
    /// The host's side did not answer.
    #[error(
        "the host's quoting service did not answer in the kernel's time; the VMM's log on the host says why"
    )]
    TimedOut,
    /// It answered with nothing.
    #[error(
        "the platform gave no evidence: the host's quoting service failed or is not there; the VMM's log on the host says why"
    )]
    Empty,
    /// Somebody else keeps writing to the same entry.
    #[error("the report was overwritten while it was read, {TRIES} times")]
    Raced,
}

/// What the kernel offers, so that tests can play it.
pub trait Tsm {
    /// mkdir.
    fn create(&self, name: &str) -> io::Result<()>;
    /// rmdir.
    fn remove(&self, name: &str);
    /// Reads an attribute.
    fn read(&self, name: &str, attribute: &str) -> io::Result<Vec<u8>>;
    /// Writes one.
    fn write(&self, name: &str, attribute: &str, value: &[u8]) -> io::Result<()>;
    /// Fills a buffer with randomness.
    fn random(&self, bytes: &mut [u8]) -> io::Result<()>;
    /// Waits before another try.
    fn pause(&self);
}

/// The kernel's.
pub struct Configfs;

impl Configfs {
    fn path(name: &str) -> PathBuf {
        Path::new(BASE).join(name)
    }
}

impl Tsm for Configfs {
    fn create(&self, name: &str) -> io::Result<()> {
        fs::create_dir(Self::path(name))
    }

    fn remove(&self, name: &str) {
        // Left behind, it costs the kernel a few bytes.
        let _ = fs::remove_dir(Self::path(name));
    }

    fn read(&self, name: &str, attribute: &str) -> io::Result<Vec<u8>> {
        fs::read(Self::path(name).join(attribute))
    }

    fn write(&self, name: &str, attribute: &str, value: &[u8]) -> io::Result<()> {
        fs::write(Self::path(name).join(attribute), value)
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        crate::system::random(bytes)
    }

    fn pause(&self) {
        std::thread::sleep(PAUSE);
    }
}

/// An entry of our own, removed when it is no longer needed.
pub struct Entry<'a, T: Tsm> {
    tsm: &'a T,
    name: String,
}

impl<T: Tsm> Drop for Entry<'_, T> {
    fn drop(&mut self) {
        self.tsm.remove(&self.name);
    }
}

/// A report or quote, and what came with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Blobs {
    /// `outblob`.
    pub out: Vec<u8>,
    /// `auxblob`; empty where the provider has none.
    pub aux: Vec<u8>,
}

impl<'a, T: Tsm> Entry<'a, T> {
    /// A new entry, under a name that nobody has.
    pub fn create(tsm: &'a T) -> Result<Self, Error> {
        let io = |name: &str, source| Error::Io { path: Configfs::path(name), source };
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..NAMES {
            let mut random = [0; 16];
            tsm.random(&mut random).map_err(|source| io("", source))?;
            let name = format!("cloister-{}", hex::encode(random));
            match tsm.create(&name) {
                Ok(()) => return Ok(Self { tsm, name }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(io(&name, error)),
            }
        }
        Err(io("", last))
    }

    fn at(&self, attribute: &str) -> impl Fn(io::Error) -> Error {
        let path = Configfs::path(&self.name).join(attribute);
        move |source| Error::Io { path: path.clone(), source }
    }

    fn number(&self, attribute: &str) -> Result<u64, Error> {
        let text = self.tsm.read(&self.name, attribute).map_err(self.at(attribute))?;
        let number = String::from_utf8_lossy(&text).trim().parse();
        number.map_err(|_| self.at(attribute)(io::ErrorKind::InvalidData.into()))
    }

    /// The provider's name.
    pub fn provider(&self) -> Result<String, Error> {
        let text = self.tsm.read(&self.name, "provider").map_err(self.at("provider"))?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Evidence over `data`. What passes is tried again, and the last of it is what is said.
    pub fn evidence(&self, data: &[u8; 64]) -> Result<Blobs, Error> {
        let mut last = Error::Busy;
        for attempt in 0..TRIES {
            if attempt > 0 {
                self.tsm.pause();
            }
            match self.attempt(data) {
                Err(passing @ (Error::Busy | Error::Raced)) => last = passing,
                // The kernel's request goes on behind our back: the next try is told that it is busy, or gets the answer.
                Err(Error::TimedOut) if attempt == 0 => last = Error::TimedOut,
                settled => return settled,
            }
        }
        Err(last)
    }

    fn attempt(&self, data: &[u8; 64]) -> Result<Blobs, Error> {
        let told = |attribute: &'static str| {
            let at = self.at(attribute);
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EBUSY | libc::EINTR) => Error::Busy,
                // What the kernel says when somebody wrote since its last answer (tsm_report_read).
                Some(libc::EWOULDBLOCK) => Error::Raced,
                Some(libc::ETIMEDOUT) => Error::TimedOut,
                _ => at(source),
            }
        };
        let before = self.number("generation")?;
        self.tsm.write(&self.name, "inblob", data).map_err(told("inblob"))?;
        let out = self.tsm.read(&self.name, "outblob").map_err(told("outblob"))?;
        // Need not exist: a verifier that needs it says so.
        let aux = self.tsm.read(&self.name, "auxblob").unwrap_or_default();
        // One write happened: ours. Another one means that the report is over somebody else's data.
        if self.number("generation")? != before.wrapping_add(1) {
            return Err(Error::Raced);
        }
        match out.is_empty() {
            true => Err(Error::Empty),
            false => Ok(Blobs { out, aux }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeSet, VecDeque};

    /// A kernel whose answers are written down beforehand.
    #[derive(Default)]
    struct Fake {
        entries: RefCell<BTreeSet<String>>,
        /// What reading `outblob` gives, one a read; then reports.
        answers: RefCell<VecDeque<io::Result<Vec<u8>>>>,
        /// Writes of others before each of our reads of the generation.
        strangers: RefCell<VecDeque<u64>>,
        /// Names that are taken already, by the first byte of the randomness.
        taken: u8,
        generation: Cell<u64>,
        drawn: Cell<u8>,
        pauses: Cell<usize>,
    }

    fn errno(code: i32) -> io::Result<Vec<u8>> {
        Err(io::Error::from_raw_os_error(code))
    }

    impl Tsm for Fake {
        fn create(&self, name: &str) -> io::Result<()> {
            let number = u8::from_str_radix(&name["cloister-".len()..][..2], 16).unwrap();
            match number < self.taken || !self.entries.borrow_mut().insert(name.into()) {
                true => Err(io::ErrorKind::AlreadyExists.into()),
                false => Ok(()),
            }
        }

        fn remove(&self, name: &str) {
            self.entries.borrow_mut().remove(name);
        }

        fn read(&self, _: &str, attribute: &str) -> io::Result<Vec<u8>> {
            match attribute {
                "provider" => Ok(b"tdx_guest\n".to_vec()),
                "generation" => {
                    let strangers = self.strangers.borrow_mut().pop_front().unwrap_or_default();
                    self.generation.set(self.generation.get() + strangers);
                    Ok(format!("{}\n", self.generation.get()).into_bytes())
                }
                "outblob" => self.answers.borrow_mut().pop_front().unwrap_or_else(|| Ok(b"quote".to_vec())),
                _ => errno(libc::ENOENT),
            }
        }

        fn write(&self, _: &str, attribute: &str, value: &[u8]) -> io::Result<()> {
            assert_eq!((attribute, value.len()), ("inblob", 64));
            self.generation.set(self.generation.get() + 1);
            Ok(())
        }

        fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
            bytes.fill(self.drawn.get());
            self.drawn.set(self.drawn.get() + 1);
            Ok(())
        }

        fn pause(&self) {
            self.pauses.set(self.pauses.get() + 1);
        }
    }

    #[test]
    fn names_that_are_taken_are_passed_over_and_entries_go_away() {
        let fake = Fake { taken: 3, ..Fake::default() };
        let entry = Entry::create(&fake).unwrap();
        assert!(entry.name.starts_with("cloister-0303"), "{}", entry.name);
        assert_eq!(entry.provider().unwrap(), "tdx_guest");
        drop(entry);
        assert!(fake.entries.borrow().is_empty());
        let full = Fake { taken: u8::MAX, ..Fake::default() };
        let error = Entry::create(&full).err().unwrap().to_string();
        assert!(error.contains("exist"), "{error}");
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_has_its_sentence() {
        let busy = || errno(libc::EBUSY);
        for (answers, outcome, pauses) in [
            (vec![], Ok(()), 0),
            (vec![busy(), busy()], Ok(()), 2),
            (vec![errno(libc::ETIMEDOUT), busy()], Ok(()), 2),
            (vec![errno(libc::ETIMEDOUT), errno(libc::ETIMEDOUT)], Err("did not answer"), 1),
            ((0..TRIES).map(|_| busy()).collect(), Err("busy"), TRIES - 1),
            (vec![Ok(vec![])], Err("gave no evidence"), 0),
            (vec![errno(libc::EWOULDBLOCK)], Ok(()), 1),
            (vec![errno(libc::EIO)], Err("outblob"), 0),
        ] {
            let fake = Fake { answers: RefCell::new(answers.into()), ..Fake::default() };
            let entry = Entry::create(&fake).unwrap();
            let blobs = entry.evidence(&[7; 64]);
            match outcome {
                Ok(()) => assert_eq!(blobs.unwrap(), Blobs { out: b"quote".to_vec(), aux: Vec::new() }),
                Err(words) => {
                    let said = blobs.unwrap_err().to_string();
                    assert!(said.contains(words), "{said}");
                }
            }
            assert_eq!(fake.pauses.get(), pauses);
        }
    }

    #[test]
    fn a_report_over_somebody_elses_data_is_not_taken() {
        // A stranger writes between our write and our last look, once; then always.
        let once = Fake { strangers: RefCell::new(vec![0, 1].into()), ..Fake::default() };
        assert!(Entry::create(&once).unwrap().evidence(&[7; 64]).is_ok());
        assert_eq!(once.pauses.get(), 1);
        let always = Fake { strangers: RefCell::new(vec![1; 100].into()), ..Fake::default() };
        let said = Entry::create(&always).unwrap().evidence(&[7; 64]).unwrap_err().to_string();
        assert!(said.contains("overwritten"), "{said}");
    }
}
