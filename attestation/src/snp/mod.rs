//! SEV-SNP evidence.
//!
//! First the bytes: [`Report`], [`TcbVersion`], the certificate [`table`]. Then, with the feature
//! `verify`, two separate questions: is the evidence *authentic* ([`authenticate`]), and is it
//! *acceptable* to a relying party ([`appraise`])? [`verify`] asks both.
//!
//! ```
//! # #[cfg(feature = "verify")] {
//! use cloister_attestation::snp::{Collateral, Evidence, Policy, TrustRoots, verify};
//! use cloister_attestation::x509::UnixTime;
//!
//! let evidence = Evidence { report: b"", certificates: &[], certificate_table: None };
//! let now: UnixTime = "2026-11-21T07:00:00Z".parse().unwrap();
//! let verdict = verify(&evidence, &TrustRoots::amd(), &Collateral::default(), now, &Policy::default());
//! assert!(!verdict.is_accepted());
//! assert_eq!(verdict.reasons.iter().next().unwrap().code.as_str(), "report-malformed");
//! # }
//! ```

mod bits;
mod report;
pub mod table;
mod tcb;

#[cfg(feature = "verify")]
mod appraise;
#[cfg(feature = "verify")]
mod authenticate;
#[cfg(feature = "verify")]
mod chain;
#[cfg(feature = "verify")]
mod claims;
#[cfg(feature = "verify")]
mod id_block;
#[cfg(feature = "verify")]
mod policy;
#[cfg(feature = "verify")]
mod roots;
#[cfg(feature = "verify")]
mod vek;

pub(crate) use bits::bit_field;
pub use bits::{GuestPolicy, PlatformInfo};
pub use report::{Cpuid, FirmwareVersion, Report, ReportError, SigningKey};
pub use tcb::{Product, TcbPart, TcbVersion};

#[cfg(feature = "verify")]
use self::appraise::undecided;
#[cfg(feature = "verify")]
pub use self::{
    appraise::appraise,
    authenticate::{Authentic, Collateral, Evidence, VerifiedVek, authenticate, authenticate_with},
    chain::Revocation,
    claims::{BitsClaims, Claims, GuestPolicyClaims, ReportClaims, RootClaims, TcbClaims},
    id_block::{IdAuth, IdBlock, IdBlockError, key_digest},
    policy::{
        AbiVersion, BitRule, FirmwareRules, GuestPolicyRules, Hex, MitigationRules, PlatformInfoRules,
        Policy, RevocationRule, TcbMaximum, TcbMinimum, TcbRules, UnknownBitRule, VekKind,
    },
    roots::{RootError, TrustRoots},
    vek::{Vek, VekError},
};
#[cfg(feature = "verify")]
pub(crate) use self::{appraise::listed, policy::bit_rules};

#[cfg(feature = "verify")]
pub use crate::contradiction::PolicyError;

/// A verdict about SEV-SNP evidence.
#[cfg(feature = "verify")]
pub type Verdict = crate::verdict::Verdict<Claims>;

/// Asks both questions: the evidence must be authentic at `time`, and acceptable to `policy`.
#[cfg(feature = "verify")]
pub fn verify(
    evidence: &Evidence<'_>,
    roots: &TrustRoots,
    collateral: &Collateral<'_>,
    time: crate::x509::UnixTime,
    policy: &Policy,
) -> Verdict {
    let moment = crate::x509::Moment { time, tolerance_seconds: policy.clock_tolerance_seconds };
    match authenticate(evidence, roots, collateral, moment) {
        Ok(authentic) => {
            let unchecked = undecided(&authentic, policy);
            Verdict::new(appraise(&authentic, policy), Some(authentic.claims()), unchecked)
        }
        Err(reasons) => Verdict::new(reasons, None, policy.unchecked()),
    }
}
