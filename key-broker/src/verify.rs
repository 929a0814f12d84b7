//! The verifier: evidence in, claims out. All reasons for a refusal go to the log and, by code, to the guest.
//!
//! What a policy leaves open about a platform's TCB or about revocation is refused, unless the configuration accepts it in
//! words. That is so when the broker starts (`startup`) and for every piece of evidence: what was current then may not be now.

mod startup;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_attestation::claims::Claims;
use cloister_attestation::ear::{EarContext, ear_claims};
use cloister_attestation::snp::Hex;
use cloister_attestation::verdict::Verdict;
use cloister_attestation::x509::UnixTime;
use cloister_attestation::{snp, tdx};
use cloister_kbs::{SnpEvidence, TdxEvidence, Tee};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{self, Config, Error};
use crate::problem::Problem;
use crate::token::seconds;

/// What evidence established.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// MEASUREMENT or MRTD, hexadecimal.
    pub measurement: String,
    /// The claims of an EAR: everything that was found.
    pub ear: Value,
    /// What was accepted although nobody decided on it.
    pub unchecked: Vec<&'static str>,
}

/// Who judges evidence.
pub trait Judge: Send + Sync {
    /// Whether there is what it takes to judge evidence of this kind.
    fn serves(&self, tee: Tee) -> bool;

    /// Judges evidence at a time. The report data must be exactly what this exchange demands, whatever the policy says.
    fn judge(
        &self,
        tee: Tee,
        evidence: Value,
        report_data: &[u8; 64],
        now: SystemTime,
    ) -> Result<Judgement, Problem>;
}

/// Roots, collateral and evidence policies, of each TEE that is configured.
pub struct Verifier {
    snp: Option<Snp>,
    tdx: Option<Tdx>,
}

struct Snp {
    roots: snp::TrustRoots,
    chain: Option<Vec<u8>>,
    crls: Vec<Vec<u8>>,
    policy: snp::Policy,
}

struct Tdx {
    collateral: Vec<tdx::Collateral>,
    policy: tdx::Policy,
}

/// What a file holds is not what it should.
fn contents(path: &Path, why: impl ToString) -> Error {
    Error::Contents { path: path.to_owned(), why: why.to_string() }
}

fn policy<P: Default + DeserializeOwned>(path: Option<&PathBuf>) -> Result<P, Error> {
    path.map_or_else(
        || Ok(P::default()),
        |path| {
            let text = config::read_text(path)?;
            // No TOML begins with a brace.
            match text.trim_start().starts_with('{') {
                true => serde_json::from_str(&text).map_err(|e| contents(path, e)),
                false => toml::from_str(&text).map_err(|e| contents(path, e)),
            }
        },
    )
}

impl Verifier {
    /// Reads what the configuration names, and refuses what would let evidence through that nobody decided on.
    pub fn open(config: &Config, now: SystemTime) -> Result<Self, String> {
        let time = UnixTime(seconds(now).map_err(|_| "the clock is before 1970".to_owned())?);
        let verifier = Self {
            snp: Snp::open(config).map_err(|e| e.to_string())?,
            tdx: Tdx::open(config).map_err(|e| e.to_string())?,
        };
        startup::check(&verifier, &config.policy.accept_unchecked, time)?;
        for tee in SUPPORTED {
            tracing::info!(tee = tee.as_ref(), served = verifier.serves(tee), "evidence");
        }
        Ok(verifier)
    }
}

impl Judge for Verifier {
    fn serves(&self, tee: Tee) -> bool {
        match tee {
            Tee::Snp => self.snp.is_some(),
            Tee::Tdx => self.tdx.is_some(),
            _ => false,
        }
    }

    fn judge(
        &self,
        tee: Tee,
        evidence: Value,
        report_data: &[u8; 64],
        now: SystemTime,
    ) -> Result<Judgement, Problem> {
        let time = UnixTime(seconds(now)?);
        match (tee, &self.snp, &self.tdx) {
            (Tee::Snp, Some(snp), _) => {
                let verdict = snp.judge(&parse(evidence)?, report_data, time)?;
                conclude(verdict, time, |claims| hex::encode(claims.report.measurement.0))
            }
            (Tee::Tdx, _, Some(tdx)) => {
                let verdict = tdx.judge(&parse(evidence)?, report_data, time)?;
                conclude(verdict, time, |claims| hex::encode(claims.mrtd.0))
            }
            _ => Err(Problem::unsupported(format!("evidence of {:?}", tee.as_ref()))),
        }
    }
}

/// The TEEs whose evidence can be judged here.
pub const SUPPORTED: [Tee; 2] = [Tee::Snp, Tee::Tdx];

fn parse<T: DeserializeOwned>(evidence: Value) -> Result<T, Problem> {
    serde_json::from_value(evidence).map_err(|e| Problem::bad_request(format!("tee-evidence: {e}")))
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_STANDARD.decode(text).map_err(|_| Problem::bad_request(format!("{what} is not base64")))
}

/// An accepted verdict as a judgement; a rejected one as a problem that names every reason.
fn conclude<C: Clone + Into<Claims>>(
    verdict: Verdict<C>,
    time: UnixTime,
    measurement: impl Fn(&C) -> String,
) -> Result<Judgement, Problem> {
    match &verdict.claims {
        Some(claims) if verdict.is_accepted() => {
            let measurement = measurement(claims);
            let unchecked = startup::that_matter(&verdict.unchecked);
            let verdict = Verdict::new(verdict.reasons, Some(claims.clone().into()), verdict.unchecked);
            let context = EarContext { issued_at: time, expires_at: None, nonce: None, confirmation: None };
            let ear = ear_claims(&verdict, &context).map_err(|_| Problem::internal())?;
            Ok(Judgement { measurement, ear, unchecked })
        }
        _ => {
            let reasons: Vec<String> =
                verdict.reasons.iter().map(|r| format!("{}: {}", r.code.as_str(), r.message)).collect();
            Err(Problem::attestation_failed(reasons.join("; ")))
        }
    }
}

impl Snp {
    /// `None` where the configuration says nothing of SEV-SNP.
    fn open(config: &Config) -> Result<Option<Self>, Error> {
        let (trust, policies) = (&config.trust, &config.policy);
        let lists_empty = trust.roots.is_empty() && trust.crls.is_empty();
        let named = policies.evidence.is_some() || trust.chain.is_some() || !lists_empty;
        if !named && policies.accept_unchecked.is_empty() {
            return Ok(None);
        }
        let mut roots = if trust.roots.is_empty() { snp::TrustRoots::amd() } else { snp::TrustRoots::none() };
        for path in &trust.roots {
            roots.add(&config::read(path)?).map_err(|e| contents(path, e))?;
        }
        let chain = trust.chain.as_deref().map(config::read).transpose()?;
        let crls = trust.crls.iter().map(|path| config::read(path)).collect::<Result<_, _>>()?;
        let mut policy: snp::Policy = policy(policies.evidence.as_ref())?;
        if !policies.accept_unchecked.contains(&config::Unchecked::Revocation) {
            policy.revocation = snp::RevocationRule::Required;
        }
        Ok(Some(Self { roots, chain, crls, policy }))
    }

    fn judge(
        &self,
        evidence: &SnpEvidence,
        report_data: &[u8; 64],
        time: UnixTime,
    ) -> Result<snp::Verdict, Problem> {
        let report = decode("report", &evidence.report)?;
        let table = decode("certificate_table", &evidence.certificate_table)?;
        let certificates: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        let crls: Vec<&[u8]> = self.crls.iter().map(Vec::as_slice).collect();
        let evidence = snp::Evidence {
            report: &report,
            certificates: &certificates,
            certificate_table: (!table.is_empty()).then_some(table.as_slice()),
        };
        let policy = snp::Policy { report_data: Some(Hex(*report_data)), ..self.policy.clone() };
        let mut verdict =
            snp::verify(&evidence, &self.roots, &snp::Collateral { crls: &crls }, time, &policy);
        if startup::without_minimum(&self.policy) && !verdict.unchecked.contains(&"tcb") {
            verdict.unchecked.push("tcb");
        }
        Ok(verdict)
    }
}

impl Tdx {
    /// `None` where the configuration has no collateral for TDX.
    fn open(config: &Config) -> Result<Option<Self>, Error> {
        let trust = &config.trust.tdx;
        let mut roots =
            if trust.roots.is_empty() { tdx::TrustRoots::intel() } else { tdx::TrustRoots::none() };
        for path in &trust.roots {
            roots.add(&config::read(path)?).map_err(|e| contents(path, e))?;
        }
        let collateral = trust.collateral.iter().map(|path| {
            let collateral = tdx::Collateral::new(&config::read(path)?, &roots);
            // Without TCB information it can judge nobody; what else is wrong with it, each verdict says.
            match collateral.tcb_info() {
                Some(_) => Ok(collateral),
                None => Err(contents(path, "no TCB information that can be read")),
            }
        });
        let collateral: Vec<_> = collateral.collect::<Result<_, _>>()?;
        let policy = policy(config.policy.evidence_tdx.as_ref())?;
        Ok((!collateral.is_empty()).then_some(Self { collateral, policy }))
    }

    /// Every platform family has collateral of its own: the verdict is that of the one that the quote belongs to.
    fn judge(
        &self,
        evidence: &TdxEvidence,
        report_data: &[u8; 64],
        time: UnixTime,
    ) -> Result<tdx::Verdict, Problem> {
        let quote = decode("quote", &evidence.quote)?;
        let log = decode("cc_eventlog", &evidence.cc_eventlog)?;
        let evidence =
            tdx::Evidence { quote: &quote, event_log: (!log.is_empty()).then_some(log.as_slice()) };
        let policy = tdx::Policy { report_data: Some(Hex(*report_data)), ..self.policy.clone() };
        let verdicts =
            self.collateral.iter().map(|collateral| tdx::verify(&evidence, collateral, time, &policy));
        let mut last = None;
        for verdict in verdicts {
            if verdict.is_accepted() {
                return Ok(verdict);
            }
            // Authentic but not acceptable says more than authentic by somebody else's collateral.
            let better = last.as_ref().is_none_or(|v: &tdx::Verdict| v.claims.is_none());
            last = if better { Some(verdict) } else { last };
        }
        last.ok_or_else(|| Problem::unsupported("this broker has no TDX collateral".to_owned()))
    }
}
