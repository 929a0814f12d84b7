//! What must be decided before the broker serves anybody: which TCB a platform must have at least, and whether its
//! certificates were revoked. A decision left open is a refusal, unless the configuration accepts it in words.

use cloister_attestation::snp::{Policy, RevocationRule, TcbRules, TrustRoots};
use cloister_attestation::x509::{Crl, UnixTime, crls};

use super::{Snp, Tdx, Verifier};
use crate::config::Unchecked;

/// Of what a verdict calls unchecked, what the broker's release policy does not decide.
pub fn that_matter(unchecked: &[&'static str]) -> Vec<&'static str> {
    unchecked.iter().copied().filter(|name| ["tcb", "revocation"].contains(name)).collect()
}

/// Whether the policy has a product without a minimum TCB: none at all, or one that is all zeros.
pub fn without_minimum(policy: &Policy) -> bool {
    let decided = |rules: &TcbRules| rules.reported.parts().iter().any(|(_, least)| *least != 0);
    policy.tcb.is_empty() || !policy.tcb.values().all(decided)
}

/// Why there is no current CRL, if there is none. Stale ones count as absent.
fn missing_crl(roots: &TrustRoots, blobs: &[Vec<u8>], policy: &Policy, now: UnixTime) -> Option<String> {
    let lists: Vec<Crl> = blobs
        .iter()
        .flat_map(|blob| crls(blob).into_iter().flatten())
        .filter_map(|der| Crl::from_der(&der).ok())
        .collect();
    // Whose evidence can be accepted: with minima, only that of the products which have one.
    let served = |root: &&cloister_attestation::x509::Certificate| {
        let name = root.common_name();
        policy.tcb.is_empty() || policy.tcb.keys().any(|product| name == format!("ARK-{product}"))
    };
    roots.roots().iter().filter(served).find_map(|root| {
        let name = root.common_name();
        let own: Vec<&Crl> = lists.iter().filter(|crl| crl.issuer() == root.subject()).collect();
        let current =
            |crl: &&&Crl| crl.this_update() <= now && crl.next_update().is_some_and(|end| now < end);
        let genuine = |crl: &&Crl| {
            crl.verify_signed_by(root, &cloister_attestation::signature::Backend::default()).is_ok()
        };
        if own.iter().filter(current).any(genuine) {
            return None;
        }
        Some(match own.first().and_then(|crl| crl.next_update()) {
            None => format!("no CRL of {name} is given"),
            Some(end) => format!("the CRL of {name} is not current (next update {end}) or not genuine"),
        })
    })
}

fn check_snp(snp: &Snp, accepted: &[Unchecked], now: UnixTime) -> Result<(), String> {
    let open = [
        (
            Unchecked::Tcb,
            without_minimum(&snp.policy).then(|| {
                "the evidence policy has no minimum TCB for a product: set [tcb.PRODUCT.reported] in \
                 [policy] evidence"
                    .to_owned()
            }),
        ),
        (
            Unchecked::Revocation,
            missing_crl(&snp.roots, &snp.crls, &snp.policy, now)
                .map(|why| format!("{why}: name a current one in [trust] crls")),
        ),
    ];
    for (what, why) in open {
        match why {
            Some(why) if !accepted.contains(&what) => {
                let name = what.name();
                return Err(format!(
                    "SEV-SNP: {why}; or write accept_unchecked = [{name:?}] in [policy] to release secrets without it"
                ));
            }
            Some(why) => tracing::warn!(unchecked = what.name(), %why, "accepted without"),
            None => {}
        }
    }
    if snp.policy.revocation == RevocationRule::IfGiven {
        tracing::warn!(unchecked = "revocation", "a CRL that is missing or out of date will not be noticed");
    }
    Ok(())
}

/// Every verdict over TDX evidence demands current collateral with its CRLs and a TCB status that the policy names: there is
/// nothing to leave open. So that the broker does not start only to refuse everybody, it is asked now.
fn check_tdx(tdx: &Tdx, now: UnixTime) -> Result<(), String> {
    for collateral in &tdx.collateral {
        let reasons: Vec<String> = collateral.reasons().iter().map(ToString::to_string).collect();
        if !reasons.is_empty() {
            return Err(format!("TDX: the collateral is no good: {}", reasons.join("; ")));
        }
        let (from, to) = collateral.window();
        if now < from || to <= now {
            return Err(format!(
                "TDX: the collateral is of another time ({from} to {to}): get it anew and name it in [trust.tdx] collateral"
            ));
        }
    }
    Ok(())
}

/// Refuses to serve where something is left open.
pub fn check(verifier: &Verifier, accepted: &[Unchecked], now: UnixTime) -> Result<(), String> {
    if verifier.snp.is_none() && verifier.tdx.is_none() {
        return Err(
            "no evidence can be judged: name [policy] evidence and [trust] crls for SEV-SNP, or [trust.tdx] \
                    collateral for TDX"
                .to_owned(),
        );
    }
    verifier.snp.as_ref().map_or(Ok(()), |snp| check_snp(snp, accepted, now))?;
    verifier.tdx.as_ref().map_or(Ok(()), |tdx| check_tdx(tdx, now))
}
