//! A host that types at the guest's console: the break of the hypervisor console (Ctrl-O, drivers/tty/hvc/hvc_console.c) and a
//! magic SysRq key, over and over, from when the guest has said its measurement; and a mark, which the guest's terminal
//! echoes. Meanwhile the host holds the broker's answers back, so that there is time to type.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

/// What the guest echoes: so the host's input reached it.
pub const MARK: &str = "typed-by-the-host";
/// What the guest says before it asks for a secret.
pub const RUNNING: &str = "cloister-guest: measurement";
/// Ctrl-O and `b`: an immediate reboot, which Debian's own mask (0x1b6) allows; then the mark.
const INPUT: &str = "\x0fbtyped-by-the-host\n";
/// For how long the host holds each secret back.
pub const HELD_BACK: Duration = Duration::from_secs(5);

/// Runs `run`, whose console is its terminal, on a terminal that the host types at; its exit code.
pub fn run(run: &Command, dir: &Path, console: &Path) -> Result<Option<i32>> {
    let launch = dir.join("launch.sh");
    fs::write(&launch, shell(run))?;
    // The VMM takes input from a terminal only. `script` (Debian's bsdutils) makes one.
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-f", "-c"]).arg(format!("sh {}", quoted(&launch.to_string_lossy())));
    script.arg("/dev/null").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = script.spawn().context("script (of Debian's bsdutils)")?;
    let (mut input, mut output) =
        (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
    let running = Arc::new(AtomicBool::new(false));
    let typist = running.clone();
    std::thread::spawn(move || {
        // Until the other side is gone.
        let mut alive = true;
        while alive {
            std::thread::sleep(Duration::from_millis(100));
            alive = !typist.load(Ordering::Relaxed) || input.write_all(INPUT.as_bytes()).is_ok();
        }
    });
    let mut log = File::create(console)?;
    std::thread::spawn(move || {
        let (mut chunk, mut said) = ([0; 4096], Vec::new());
        while let Ok(n @ 1..) = output.read(&mut chunk) {
            said.extend_from_slice(&chunk[..n]);
            if memchr::memmem::find(&said, RUNNING.as_bytes()).is_some() {
                running.store(true, Ordering::Relaxed);
            }
            if log.write_all(&chunk[..n]).is_err() {
                return;
            }
        }
    });
    super::wait(child)
}

/// The command as a shell script.
fn shell(command: &Command) -> String {
    let mut text = String::from("exec");
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        let _ = write!(text, " {}", quoted(&word.to_string_lossy()));
    }
    text + "\n"
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_through_a_shell_unchanged() {
        let mut command = Command::new("printf");
        command.args(["%s|", "a b", "it's", "$x", ""]);
        let output = Command::new("sh").arg("-c").arg(shell(&command)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$x||");
        assert!(INPUT.contains(MARK));
    }
}
