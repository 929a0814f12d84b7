//! The guest's console is the host's: it reads what is printed there, and types what it likes. So the first thing that init does
//! is to close it: no magic SysRq, no kernel messages (a panic's registers among them), no input.
//!
//! A console log level of 0 silences the kernel for good: an oops or a panic raises any other level to the highest
//! (`console_verbose` in linux/printk.h), and leaves 0 alone. What init itself says then goes to the console directly.

use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the kernel's messages do not reach the console: silenced here, or by `quiet` or `loglevel=` on the command line.
static QUIET: AtomicBool = AtomicBool::new(false);
/// The priority of what is said here: notice.
const PRIORITY: u8 = 5;
/// Characters of one line at most: parts of it may be the host's.
const MAX_LINE: usize = 1000;

/// What the owner leaves open, by `cloister.console=` on the measured command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Openings {
    /// `input`: what the host types reaches `cloister.exec`.
    pub input: bool,
    /// `verbose`: the kernel's messages go to the console, whatever is in them.
    pub verbose: bool,
}

impl FromStr for Openings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut openings = Self::default();
        for word in text.split(',') {
            match word {
                "input" => openings.input = true,
                "verbose" => openings.verbose = true,
                _ => return Err(format!("{word:?} is neither input nor verbose")),
            }
        }
        Ok(openings)
    }
}

/// What is written where. A kernel without SysRq has no such file, and needs none.
fn settings(openings: Openings) -> impl Iterator<Item = (&'static str, &'static str)> {
    let silence = (!openings.verbose).then_some(("kernel/printk", "0"));
    [("kernel/sysrq", "0")].into_iter().chain(silence)
}

/// Closes the console, by the files below `sysctl`.
fn close_at(sysctl: &Path, openings: Openings) -> io::Result<()> {
    for (name, value) in settings(openings) {
        match fs::OpenOptions::new().write(true).open(sysctl.join(name)) {
            Ok(mut file) => io::Write::write_all(&mut file, value.as_bytes())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Closes the console. `/proc` must be mounted.
pub fn close(openings: Openings) -> Result<(), String> {
    close_at(Path::new("/proc/sys"), openings).map_err(|e| format!("the console cannot be closed: {e}"))?;
    let level = fs::read_to_string("/proc/sys/kernel/printk").unwrap_or_default();
    QUIET.store(!openings.verbose || hides(&level), Ordering::Relaxed);
    Ok(())
}

/// Whether the console's level, first of the numbers in `kernel/printk`, hides what is said here: only messages below the
/// level are shown. Where it cannot be read, a line that comes twice is better than none.
fn hides(printk: &str) -> bool {
    let level = printk.split_ascii_whitespace().next().and_then(|level| level.parse::<u8>().ok());
    level.is_none_or(|level| level <= PRIORITY)
}

/// A line without what a terminal would act on, and not endless.
fn plain(line: &str) -> String {
    let mut text = String::new();
    for c in line.chars().take(MAX_LINE) {
        match c.is_control() {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    text
}

/// To the kernel log, and to the console where the log does not go there.
pub fn say(line: &str) {
    let line = plain(line);
    let logged = fs::write("/dev/kmsg", format!("<{PRIORITY}>cloister-guest: {line}\n")).is_ok();
    if !logged || QUIET.load(Ordering::Relaxed) {
        eprintln!("cloister-guest: {line}");
    }
}

/// To standard error: parts of an error may be the host's, too.
pub fn complain(error: &str) {
    eprintln!("cloister-guest: {}", plain(error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_closed_but_what_the_owner_opens() {
        let dir = std::env::temp_dir().join(format!("cloister-console-{}", std::process::id()));
        let kernel = dir.join("kernel");
        fs::create_dir_all(&kernel).unwrap();
        let closed = |openings| {
            for name in ["sysrq", "printk"] {
                fs::write(kernel.join(name), "9").unwrap();
            }
            close_at(&dir, openings).unwrap();
            ["sysrq", "printk"].map(|name| fs::read_to_string(kernel.join(name)).unwrap())
        };
        assert_eq!(closed(Openings::default()), ["0", "0"]);
        assert_eq!(closed(Openings { verbose: true, input: true }), ["0", "9"], "SysRq is never left open");
        fs::remove_file(kernel.join("sysrq")).unwrap();
        assert!(close_at(&dir, Openings::default()).is_ok(), "a kernel without SysRq");
        fs::create_dir(kernel.join("sysrq")).unwrap();
        assert!(close_at(&dir, Openings::default()).is_err(), "what cannot be closed is not passed over");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_kernel_that_was_told_to_be_quiet_hides_what_is_said_in_its_log() {
        // `quiet` is 4, Linux's default 7, `debug` 10.
        for (printk, hidden) in [
            ("4\t4\t1\t7\n", true),
            ("5 4 1 7", true),
            ("7\t4\t1\t7\n", false),
            ("10 4 1 7", false),
            ("", true),
        ] {
            assert_eq!(hides(printk), hidden, "{printk:?}");
        }
    }

    #[test]
    fn openings_are_words() {
        assert_eq!("input".parse(), Ok(Openings { input: true, verbose: false }));
        assert_eq!("verbose,input".parse(), Ok(Openings { input: true, verbose: true }));
        assert!("".parse::<Openings>().is_err() && "login".parse::<Openings>().is_err());
    }

    #[test]
    fn what_others_wrote_does_not_act_on_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n[1.0] c"), "a\\u{1b}[2Jb\\n[1.0] c");
        assert_eq!(plain(&"x".repeat(5000)).len(), MAX_LINE);
    }
}
