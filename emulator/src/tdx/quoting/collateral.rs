//! Collateral as Intel's provisioning service would give it: TCB info, QE identity, CRLs; JSON signed byte for byte.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::{DateTime, Encode};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde::Serialize;
use serde_json::{Value, json};

use super::pki::{FMSPC, PCE_ID, Pki};
use super::platform::{CURRENT, CURRENT_TEE, Platform, STALE, STALE_TEE, Versions};
use super::quote::{QE_ATTRIBUTES, QE_MRSIGNER, QE_PRODUCT};
use crate::platform::{Error, crypto, io, write_public};

/// The pieces that a verifier takes (the shape of PCCS clients: CRLs and signatures in hex, JSON verbatim).
#[derive(Serialize)]
pub struct Collateral {
    pck_crl_issuer_chain: String,
    root_ca_crl: String,
    pck_crl: String,
    tcb_info_issuer_chain: String,
    tcb_info: String,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: String,
    qe_identity_signature: String,
}

/// Days that collateral is valid for.
const DAYS: u64 = 30;
const EVALUATION_NUMBER: u32 = 18;
const CURRENT_DATE: &str = "2026-05-13T00:00:00Z";
const STALE_DATE: &str = "2025-05-14T00:00:00Z";

fn timestamp(days_from_now: i64) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(crypto)?.as_secs();
    let at = now.saturating_add_signed(days_from_now * 86400);
    DateTime::from_unix_duration(Duration::from_secs(at)).map(|t| t.to_string()).map_err(crypto)
}

fn components(svns: &[u8; 16]) -> Value {
    svns.iter().map(|svn| json!({ "svn": svn })).collect()
}

fn level(versions: &Versions, tee: &[u8; 16], date: &str, status: &str) -> Value {
    json!({
        "tcb": {
            "sgxtcbcomponents": components(&versions.sgx),
            "pcesvn": versions.pcesvn,
            "tdxtcbcomponents": components(tee),
        },
        "tcbDate": date,
        "tcbStatus": status,
    })
}

fn with_advisory(mut level: Value) -> Value {
    if let Some(object) = level.as_object_mut() {
        object.insert("advisoryIDs".into(), json!(["SOFTKVM-SA-00001"]));
    }
    level
}

/// A module's measurements that the levels go with: Intel's signer is all zeros.
fn module_identity() -> Value {
    let mut identity = module();
    if let Some(object) = identity.as_object_mut() {
        let major = CURRENT_TEE[1];
        object.insert("id".into(), json!(format!("TDX_{major:02X}")));
        object.insert(
            "tcbLevels".into(),
            json!([
                { "tcb": { "isvsvn": CURRENT_TEE[0] }, "tcbDate": CURRENT_DATE, "tcbStatus": "UpToDate" },
                with_advisory(json!({
                    "tcb": { "isvsvn": STALE_TEE[0] }, "tcbDate": STALE_DATE, "tcbStatus": "OutOfDate",
                })),
            ]),
        );
    }
    identity
}

fn module() -> Value {
    json!({
        "mrsigner": "0".repeat(96),
        "attributes": "0".repeat(16),
        "attributesMask": "F".repeat(16),
    })
}

fn tcb_info() -> Result<String, Error> {
    // In the levels the module's own SVN is the module identities' business.
    let without_module = |tee: [u8; 16]| [0, tee[1], tee[2], tee[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Ok(json!({
        "id": "TDX",
        "version": 3,
        "issueDate": timestamp(0)?,
        "nextUpdate": timestamp(DAYS as i64)?,
        "fmspc": hex::encode(FMSPC),
        "pceId": hex::encode(PCE_ID),
        "tcbType": 0,
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "tdxModule": module(),
        "tdxModuleIdentities": [module_identity()],
        "tcbLevels": [
            level(&CURRENT, &without_module(CURRENT_TEE), CURRENT_DATE, "UpToDate"),
            with_advisory(level(&STALE, &without_module(STALE_TEE), STALE_DATE, "OutOfDate")),
        ],
    })
    .to_string())
}

fn qe_identity() -> Result<String, Error> {
    Ok(json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": timestamp(0)?,
        "nextUpdate": timestamp(DAYS as i64)?,
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": hex::encode_upper(QE_ATTRIBUTES),
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(QE_MRSIGNER),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [
            { "tcb": { "isvsvn": CURRENT.qe_isvsvn }, "tcbDate": CURRENT_DATE, "tcbStatus": "UpToDate" },
        ],
    })
    .to_string())
}

fn sign(key: &SigningKey, text: &str) -> String {
    let signature: Signature = key.sign(text.as_bytes());
    hex::encode(signature.to_bytes())
}

impl Collateral {
    /// Collateral for a platform's FMSPC, valid from now.
    pub fn make(platform: &Platform) -> Result<Self, Error> {
        let pki = &platform.pki;
        let (root_crl, pck_crl) = pki.crls(platform.model.pck_revoked)?;
        let signing_chain = Pki::chain(&[&pki.tcb_signing, &pki.root])?;
        let (tcb_info, qe_identity) = (tcb_info()?, qe_identity()?);
        Ok(Self {
            pck_crl_issuer_chain: Pki::chain(&[&pki.platform_ca, &pki.root])?,
            root_ca_crl: hex::encode(root_crl.to_der().map_err(crypto)?),
            pck_crl: hex::encode(pck_crl.to_der().map_err(crypto)?),
            tcb_info_issuer_chain: signing_chain.clone(),
            tcb_info_signature: sign(&pki.tcb_signing_key, &tcb_info),
            tcb_info,
            qe_identity_issuer_chain: signing_chain,
            qe_identity_signature: sign(&pki.tcb_signing_key, &qe_identity),
            qe_identity,
        })
    }

    /// `softkvm export-certs`: tdx-root.pem, tdx-root.der and tdx-collateral.json.
    pub fn export(&self, platform: &Platform, dir: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let root = &platform.pki.root;
        write_public(&dir.join("tdx-root.pem"), Pki::chain(&[root])?)?;
        write_public(&dir.join("tdx-root.der"), root.to_der().map_err(crypto)?)?;
        let text = serde_json::to_string_pretty(self).map_err(crypto)?;
        write_public(&dir.join("tdx-collateral.json"), text)
    }
}
