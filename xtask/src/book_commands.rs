//! The book's shell commands, run as they are written.
//!
//! The ```` ```sh ```` blocks of a page are one script, in their order, run by bash in the workspace; what the page's
//! ```` ```text ```` blocks show must come out, line by line and in that order, where `…` stands for anything. Files that the
//! commands make are in `try/`, which is removed. A block below a line `<!-- not run: WHY -->` is not run, and a page of which nothing
//! runs needs that line above each of its blocks: nothing is left out in silence.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::paths;

/// Where the commands put their files.
const SCRATCH: &str = "try";
const MARK: &str = "<!-- not run: ";
/// Ends what a page left running, when the page ends.
const PROLOGUE: &str = "set -eu -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n";

/// What a page asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    script: String,
    /// Lines that must come out.
    expected: Vec<String>,
    skipped: usize,
}

impl Page {
    fn parse(text: &str) -> Result<Self> {
        let mut page = Self::default();
        let (mut mark, mut skips) = (false, false);
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let indent = line.len() - line.trim_start().len();
            let Some(kind) = line.trim_start().strip_prefix("```") else {
                if let Some(why) = line.trim_start().strip_prefix(MARK) {
                    let why = why.strip_suffix("-->").unwrap_or_default().trim();
                    ensure!(!why.is_empty(), "line {}: `{MARK}WHY -->` on one line", number + 1);
                    mark = true;
                } else if !line.trim().is_empty() {
                    mark = false;
                }
                continue;
            };
            let mut block = Vec::new();
            loop {
                let (_, line) =
                    lines.next().with_context(|| format!("line {}: no end of block", number + 1))?;
                if line.trim() == "```" {
                    break;
                }
                block.push(line.get(indent..).unwrap_or_default());
            }
            match kind {
                "sh" => {
                    skips = mark;
                    match mark {
                        true => page.skipped += 1,
                        false => page.script.extend(block.iter().flat_map(|line| [*line, "\n"])),
                    }
                }
                // Output of commands that are not run is nobody's.
                "text" if !skips && !page.script.is_empty() => {
                    page.expected.extend(block.iter().map(|line| line.trim().to_owned()));
                }
                "" => {
                    bail!("line {}: a block without a kind: commands are `sh`, output is `text`", number + 1)
                }
                _ => {}
            }
            mark = false;
        }
        Ok(page)
    }

    /// The first line that does not come out.
    fn missing<'a>(&'a self, output: &str) -> Option<&'a str> {
        let mut lines = output.lines();
        let absent = |wanted: &&String| !lines.any(|line| matches(wanted, line));
        self.expected.iter().find(absent).map(String::as_str)
    }
}

/// Whether a line has all parts of the pattern in their order.
fn matches(pattern: &str, line: &str) -> bool {
    let mut rest = line.trim();
    pattern.split('…').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// Runs every page of the book and the README.
pub fn check() -> Result<()> {
    let root = paths::workspace();
    let mut pages = vec![root.join("README.md")];
    for entry in fs::read_dir(root.join("docs/src"))? {
        pages.push(entry?.path());
    }
    pages.sort();
    // All are read before the first is run.
    let mut parsed = Vec::new();
    for path in pages.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let page = Page::parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        parsed.push((path, page));
    }
    for (path, page) in parsed {
        if page.script.is_empty() && page.skipped == 0 {
            continue;
        }
        println!(
            "{}: {} commands' lines, {} blocks not run",
            path.display(),
            page.script.lines().count(),
            page.skipped
        );
        run(&root, &page).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn run(root: &Path, page: &Page) -> Result<()> {
    if page.script.is_empty() {
        return Ok(());
    }
    let scratch = root.join(SCRATCH);
    ensure!(
        !scratch.exists(),
        "{} is there already: remove it, the book's commands make it",
        scratch.display()
    );
    let log = paths::target().join("book-commands.log");
    let output = fs::File::create(&log)?;
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("{PROLOGUE}{}", page.script)]).current_dir(root);
    bash.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let status = bash.status().context("cannot run bash")?;
    let _ = fs::remove_dir_all(&scratch);
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    ensure!(status.success(), "the commands ended with {status}; what they said is in {}", log.display());
    match page.missing(&text) {
        Some(line) => bail!("{line:?} did not come out; what did is in {}", log.display()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_run_unless_a_mark_says_why_not() {
        let text = "```sh\na\n  b\n```\ntext\n```text\nout … put\n```\n<!-- not run: no such machine -->\n\n```sh\nc\n```\n\
                    ```text\nunseen\n```\n1. item\n\n   ```sh\n   d\n   ```\n```toml\nx = 1\n```\n";
        let page = Page::parse(text).unwrap();
        assert_eq!(
            page,
            Page { script: "a\n  b\nd\n".into(), expected: vec!["out … put".into()], skipped: 1 }
        );
        // A mark is for the block right below it.
        let page = Page::parse("<!-- not run: why -->\nother words\n```sh\na\n```\n").unwrap();
        assert_eq!((page.script.as_str(), page.skipped), ("a\n", 0));
        for bad in ["<!-- not run: -->\n```sh\na\n```\n", "```\na\n```\n", "```sh\na\n"] {
            assert!(Page::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_must_come_out_comes_in_its_order() {
        let page = Page { expected: vec!["a … c".into(), "second".into()], ..Page::default() };
        assert_eq!(page.missing("a b c\nnoise\n[1] second line\n"), None);
        assert_eq!(page.missing("second\na b c\n"), Some("second"));
        assert_eq!(page.missing("c b a\nsecond\n"), Some("a … c"));
    }

    #[test]
    fn commands_that_fail_or_say_something_else_are_found() {
        let run = |script: &str, expected: &[&str]| {
            let root = tempfile::tempdir().unwrap();
            let expected = expected.iter().map(|&line| line.to_owned()).collect();
            let result = run(root.path(), &Page { script: script.into(), expected, skipped: 0 });
            assert!(!root.path().join(SCRATCH).exists());
            result.map_err(|error| error.to_string())
        };
        assert_eq!(run("mkdir try; cd try\nsleep 100 &\necho one\n", &["one"]), Ok(()));
        assert!(run("false\necho one\n", &["one"]).unwrap_err().contains("ended with"));
        assert!(run("echo two\n", &["one"]).unwrap_err().contains("did not come out"));
    }

    #[test]
    fn each_page_can_be_read() {
        for entry in fs::read_dir(paths::workspace().join("docs/src")).unwrap() {
            let path = entry.unwrap().path();
            Page::parse(&fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
        }
    }
}
