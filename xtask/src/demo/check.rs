//! What must be true after a run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::tamper::{GUEST, NOBODY, Tamper};
use super::{Outcome, RESOURCE, SHARED_PAGES, Tee, sysrq};

/// A finished run.
pub struct Run<'a> {
    pub tee: Tee,
    pub outcome: &'a Outcome,
    pub broker_log: &'a str,
    pub predicted: &'a str,
    pub secret: &'a str,
    pub proof_key: &'a str,
}

/// The line of a log that holds all of these words, without the kernel's timestamp.
fn line<'a>(log: &'a str, words: &[&str]) -> Option<&'a str> {
    let found = log.lines().find(|l| words.iter().all(|w| l.contains(w)))?;
    Some(found.split_once("] ").map_or(found, |(_, rest)| rest).trim())
}

/// As the guest proves that it has the secret: under a key that only it and the secret's owner have.
fn proof(run: &Run<'_>) -> Result<String> {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(run.proof_key.as_bytes())?;
    let mac =
        mac.chain_update("cloister secret proof 1\n").chain_update((RESOURCE.len() as u64).to_be_bytes());
    let proof = mac.chain_update(RESOURCE).chain_update(run.secret).finalize().into_bytes();
    Ok(proof.iter().map(|b| format!("{b:02x}")).collect())
}

/// The secret was released, to the guest alone.
pub fn released(run: &Run<'_>, dir: &Path) -> Result<()> {
    let console = &run.outcome.console;
    let tail = || {
        format!(
            "\n{}\n{}\n{}",
            last_lines(console),
            last_lines(&run.outcome.host),
            last_lines(run.broker_log)
        )
    };
    let words = run.tee.active();
    let active =
        line(console, &[words]).with_context(|| format!("the kernel does not say {words:?}{}", tail()))?;
    println!("guest: {active}");
    let reported =
        line(console, &["cloister-guest: measurement"]).with_context(|| format!("no report{}", tail()))?;
    println!("guest: {reported}");
    ensure!(reported.contains(run.predicted), "the report's measurement is not the predicted one");
    println!("demo: predicted and reported measurement are equal");
    let got = line(console, &["cloister-guest: secret", RESOURCE])
        .with_context(|| format!("no secret{}", tail()))?;
    println!("guest: {got}");
    ensure!(got.contains(&proof(run)?), "the guest has another secret");
    ensure!(run.outcome.code == Some(0), "cloister ended with {:?}{}", run.outcome.code, tail());
    for secret in [run.secret, run.proof_key] {
        search(dir, secret)?;
    }
    println!(
        "demo: the secret is in no file or log of the host, nor in the memory that the guest shared with it"
    );
    println!("demo: secret released");
    Ok(())
}

/// The secret, raw or encoded, is in no file of the host's side, the dump of shared pages among them.
fn search(dir: &Path, secret: &str) -> Result<()> {
    // The search would find what is there: the guest's requests to the broker went through those pages.
    let shared = fs::read(dir.join(SHARED_PAGES)).context("the dump of shared pages")?;
    for through in ["kbs-session-id=", "cloister-request: ", "GET /kbs/v0/resource/"] {
        ensure!(contains(&shared, through), "{through:?} went through shared pages and is not in their dump");
    }
    let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // Sockets are gone or unreadable; directories hold certificates.
        let Ok(bytes) = fs::read(&path) else { continue };
        for needle in [secret, &hex] {
            if contains(&bytes, needle) {
                bail!("the secret is in {}", path.display());
            }
        }
    }
    Ok(())
}

fn contains(bytes: &[u8], needle: &str) -> bool {
    memchr::memmem::find(bytes, needle.as_bytes()).is_some()
}

/// Somebody refused, and it was the right one.
pub fn refused(run: &Run<'_>, what: Tamper) -> Result<()> {
    let expected = what.expected(run.tee).context("no such attack")?;
    let (console, host) = (run.outcome.console.as_str(), run.outcome.host.as_str());
    let all = [run.broker_log, host, console];
    let failed = |why: String| {
        let logs: String = all.iter().map(|log| last_lines(log)).collect();
        anyhow::anyhow!("expected the {} to refuse {what:?} ({why}):\n{logs}", expected.who)
    };
    if let Some(word) = expected.never.iter().find(|word| all.iter().any(|log| log.contains(**word))) {
        let said = all.iter().find_map(|log| line(log, &[word])).unwrap_or_default();
        return Err(failed(format!("it succeeded: {said}")));
    }
    match expected.who {
        NOBODY => {}
        // The broker gave it, and the guest took only what the host had not touched.
        GUEST => {
            let taken = console.matches(&format!("cloister-guest: secret {RESOURCE}")).count();
            let good = usize::from(what == Tamper::OldSecret);
            ensure!(taken <= good * 2, failed("the guest took the secret".to_owned()));
            ensure!(run.outcome.code != Some(0), failed("the guest ended well".to_owned()));
        }
        _ => ensure!(!run.broker_log.contains("\"released\""), failed("the secret was released".to_owned())),
    }
    if what == Tamper::Sysrq {
        // The host's terminal is raw by then: only the guest can have echoed what was typed.
        let running = console.find(sysrq::RUNNING).map(|at| &console[at..]).unwrap_or_default();
        let reached = running.contains(sysrq::MARK);
        ensure!(reached, failed("what the host typed did not reach the running guest".to_owned()));
    }
    // The words of whoever must refuse, in what that one says: another's would prove nothing.
    let own: &[&str] = match expected.who {
        "broker" => &[run.broker_log],
        GUEST => &[console],
        "firmware" => &[console, host],
        NOBODY => &[console, host],
        _ => &[host],
    };
    if let Some(word) = expected.evidence.iter().find(|word| !own.iter().any(|log| log.contains(*word))) {
        return Err(failed(format!("{word:?} is not in what it said")));
    }
    if expected.who != NOBODY {
        println!("demo: refused: {}: {}", expected.who, reason(own, expected.evidence));
    }
    Ok(())
}

/// The line that says why: the last of the words is the telling one.
fn reason(logs: &[&str], words: &[&str]) -> String {
    let telling = words.last().copied().unwrap_or_default();
    let found = logs.iter().find_map(|log| line(log, &[telling])).unwrap_or_default();
    // The broker's log is JSON lines.
    match serde_json::from_str::<serde_json::Value>(found) {
        Ok(value) => {
            let fields = &value["fields"];
            let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
            [text("message"), text("reason"), text("resource")]
                .into_iter()
                .filter(|t| !t.is_empty())
                .collect::<Vec<_>>()
                .join(": ")
        }
        Err(_) => found.to_owned(),
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n") + "\n"
}
