//! TDX evidence.
//!
//! First the bytes: [`Quote`], [`TdReport`], the [`EventLog`] of the guest's firmware. Then, with the feature
//! `verify`, two separate questions: is the evidence *authentic* ([`authenticate`]), and is it *acceptable* to
//! a relying party ([`appraise`])? [`verify`] asks both.
//!
//! What Intel publishes beside its root, the [`Collateral`], is judged once and then serves any number of quotes:
//! all of its signatures are checked when it is read, and its dates whenever a quote is. A [`VerifiedPlatform`] does the same for the
//! machine: its next quote costs one signature.
//!
//! ```
//! # #[cfg(feature = "verify")] {
//! use cloister_attestation::tdx::{Collateral, Evidence, Policy, TrustRoots, verify};
//! use cloister_attestation::x509::UnixTime;
//!
//! let collateral = Collateral::new(b"{}", &TrustRoots::intel());
//! let evidence = Evidence { quote: b"", event_log: None };
//! let now: UnixTime = "2026-11-21T07:00:00Z".parse().unwrap();
//! let verdict = verify(&evidence, &collateral, now, &Policy::default());
//! let codes = verdict.reasons.codes();
//! assert_eq!(codes.iter().map(|code| code.as_str()).collect::<Vec<_>>(), ["quote-malformed", "collateral-malformed"]);
//! # }
//! ```
//!
//! Nothing here fetches: no PCS, no PCCS, no clock.

mod bits;
pub(crate) mod event_log;
mod quote;

#[cfg(feature = "verify")]
mod appraise;
#[cfg(feature = "verify")]
mod authenticate;
#[cfg(feature = "verify")]
mod chain;
#[cfg(feature = "verify")]
mod claims;
#[cfg(feature = "verify")]
mod collateral;
#[cfg(feature = "verify")]
mod documents;
#[cfg(feature = "verify")]
mod pck;
#[cfg(feature = "verify")]
mod pcs;
#[cfg(feature = "verify")]
mod policy;
#[cfg(feature = "verify")]
mod roots;
#[cfg(feature = "verify")]
mod tcb;

pub use bits::{TdAttributes, Xfam};
pub use event_log::{
    Event, EventData, EventLog, EventLogError, EventLogQuirk, Inconsistency, Label, RtmrIndex,
};
pub use quote::{BodyType, EnclaveReport, Quote, QuoteError, Td10, Td15, Td15Ex, TdReport};

#[cfg(feature = "verify")]
pub use self::{
    appraise::appraise,
    authenticate::{Authentic, Conditions, Evidence, VerifiedPlatform, authenticate},
    chain::PckCa,
    claims::{Claims, EventClaims, EventLogClaims, ExtendedClaims, LogWord},
    collateral::{Collateral, Crls},
    documents::{CollateralDocument, CollateralError, EnclaveLevel, HexBytes, QeIdentity, TcbInfo},
    pck::{Pck, PckError, PlatformConfiguration},
    pcs::{AnswerError, PcsAnswers, PcsError, SignedText},
    policy::{EventLogRule, PaddingRule, PlatformRules, Policy, TcbRules, TdAttributeRules},
    roots::{RootError, TrustRoots},
    tcb::{Level, LevelError, MissedLevel, Part, PlatformSvns, Shortfall, TcbStatus, TcbVerdict},
};

#[cfg(feature = "verify")]
pub use crate::contradiction::PolicyError;

/// A verdict about TDX evidence.
#[cfg(feature = "verify")]
pub type Verdict = crate::verdict::Verdict<Claims>;

/// Asks both questions: the evidence must be authentic at `time`, and acceptable to `policy`.
#[cfg(feature = "verify")]
pub fn verify(
    evidence: &Evidence<'_>,
    collateral: &Collateral,
    time: crate::x509::UnixTime,
    policy: &Policy,
) -> Verdict {
    let unchecked = policy.unchecked();
    let moment = crate::x509::Moment { time, tolerance_seconds: policy.clock_tolerance_seconds };
    let conditions = Conditions { time: moment, event_log_quirks: &policy.event_log_quirks };
    match authenticate(evidence, collateral, conditions) {
        Ok(authentic) => Verdict::new(appraise(&authentic, policy), Some(authentic.claims()), unchecked),
        Err(reasons) => Verdict::new(reasons, None, unchecked),
    }
}
