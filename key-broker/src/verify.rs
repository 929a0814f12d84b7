//! The verifier: evidence in, claims out. All reasons for a refusal go to the log and, by code, to the guest.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_attestation::snp::{self, Collateral, Evidence, Hex, Policy, TrustRoots};
use cloister_attestation::x509::UnixTime;
use cloister_kbs::SnpEvidence;

use crate::config::{self, Config, Error};
use crate::problem::Problem;

/// What evidence established.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// MEASUREMENT, hexadecimal.
    pub measurement: String,
    /// Claims.
    pub claims: serde_json::Value,
    /// Everything that was found, for the token.
    pub verdict: snp::Verdict,
}

/// Roots, collateral and evidence policy.
pub struct Verifier {
    roots: TrustRoots,
    chain: Option<Vec<u8>>,
    crls: Vec<Vec<u8>>,
    policy: Policy,
}

impl Verifier {
    /// Reads what the configuration names.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let mut roots = if config.trust.roots.is_empty() { TrustRoots::amd() } else { TrustRoots::none() };
        for path in &config.trust.roots {
            let bytes = config::read(path)?;
            roots.add(&bytes).map_err(|e| Error::Contents { path: path.clone(), why: e.to_string() })?;
        }
        let policy = match &config.policy.evidence {
            Some(path) => toml::from_str(&config::read_text(path)?)
                .map_err(|e| Error::Contents { path: path.clone(), why: e.to_string() })?,
            None => Policy::default(),
        };
        let chain = config.trust.chain.as_deref().map(config::read).transpose()?;
        let crls = config.trust.crls.iter().map(|path| config::read(path)).collect::<Result<_, _>>()?;
        Ok(Self { roots, chain, crls, policy })
    }

    /// Judges evidence at a time. The report data must be exactly what this exchange demands, whatever the policy says.
    pub fn judge(
        &self,
        evidence: &SnpEvidence,
        report_data: &[u8; 64],
        now: SystemTime,
    ) -> Result<Judgement, Problem> {
        let decode = |what: &str, text: &str| {
            BASE64_STANDARD.decode(text).map_err(|_| Problem::bad_request(format!("{what} is not base64")))
        };
        let report = decode("report", &evidence.report)?;
        let table = decode("certificate_table", &evidence.certificate_table)?;
        let time = now.duration_since(UNIX_EPOCH).map_err(|_| Problem::internal())?;
        let certificates: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        let crls: Vec<&[u8]> = self.crls.iter().map(Vec::as_slice).collect();
        let evidence = Evidence {
            report: &report,
            certificates: &certificates,
            certificate_table: (!table.is_empty()).then_some(table.as_slice()),
        };
        let policy = Policy { report_data: Some(Hex(*report_data)), ..self.policy.clone() };
        let collateral = Collateral { crls: &crls };
        let verdict = snp::verify(&evidence, &self.roots, &collateral, UnixTime(time.as_secs()), &policy);
        match &verdict.claims {
            Some(claims) if verdict.is_accepted() => Ok(Judgement {
                measurement: hex::encode(claims.measurement.0),
                claims: serde_json::to_value(claims).map_err(|_| Problem::internal())?,
                verdict,
            }),
            _ => {
                let reasons: Vec<String> =
                    verdict.reasons.iter().map(|r| format!("{}: {}", r.code.as_str(), r.message)).collect();
                Err(Problem::attestation_failed(reasons.join("; ")))
            }
        }
    }
}
