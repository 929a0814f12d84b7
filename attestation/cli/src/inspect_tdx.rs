//! `inspect` for TDX: quotes, collateral and event logs. Nothing of it is verified.

use cloister_attestation::snp::{BitsClaims, Hex};
use cloister_attestation::tdx::{
    CollateralDocument, EnclaveLevel, EventLog, EventLogClaims, ExtendedClaims, Pck, QeIdentity, Quote,
    SignedText, TcbInfo, TdAttributes, TdReport, Xfam,
};
use cloister_attestation::x509::{Certificate, certificates};
use serde_json::{Value, json};

use crate::inspect::{certificate, crl, describe_all};

/// What a quote says.
pub fn quote(bytes: &[u8]) -> anyhow::Result<Value> {
    let quote = Quote::parse(bytes)?;
    let qe = quote.qe_report();
    let chain =
        certificates(quote.pck_chain()).map_err(anyhow::Error::from).and_then(|chain| describe_all(&chain));
    let zero = quote.padding().iter().all(|&byte| byte == 0);
    Ok(json!({
        "kind": "TDX quote (not verified)",
        "version": quote.version(),
        "qe_vendor_id": Hex(*quote.qe_vendor_id()),
        "user_data": Hex(*quote.user_data()),
        "report": report(quote.report()),
        "attestation_key": Hex(*quote.attestation_key()),
        "quoting_enclave": {
            "cpu_svn": Hex(qe.cpu_svn),
            "miscselect": Hex(qe.miscselect),
            "attributes": Hex(qe.attributes),
            "mrenclave": Hex(qe.mrenclave),
            "mrsigner": Hex(qe.mrsigner),
            "isv_prod_id": qe.isv_prod_id(),
            "isv_svn": qe.isv_svn(),
            "authentication_data": hex::encode(quote.qe_auth_data()),
        },
        "pck_chain": chain.unwrap_or_else(|error| vec![json!({"error": error.to_string()})]),
        "padding": {"bytes": quote.padding().len(), "zero": zero},
    }))
}

fn report(report: &TdReport) -> Value {
    let base = &report.base;
    let [rtmr0, rtmr1, rtmr2, rtmr3] = base.rtmrs.map(Hex);
    json!({
        "type": report.kind().name(),
        "tee_tcb_svn": Hex(base.tee_tcb_svn),
        "mrseam": Hex(base.mrseam),
        "mrsignerseam": Hex(base.mrsignerseam),
        "seam_attributes": Hex(base.seam_attributes),
        "td_attributes": BitsClaims::new(report.td_attributes().0, TdAttributes::BITS),
        "xfam": BitsClaims::new(report.xfam().0, Xfam::BITS),
        "mrtd": Hex(base.mrtd),
        "rtmr0": rtmr0,
        "rtmr1": rtmr1,
        "rtmr2": rtmr2,
        "rtmr3": rtmr3,
        "report_data": Hex(base.report_data),
        "mrconfigid": Hex(base.mrconfigid),
        "mrowner": Hex(base.mrowner),
        "mrownerconfig": Hex(base.mrownerconfig),
        "tee_tcb_svn2": report.v15.as_ref().map(|v15| Hex(v15.tee_tcb_svn2)),
        "mrservicetd": report.v15.as_ref().map(|v15| Hex(v15.mrservicetd)),
        "extended": report.ex.as_ref().map(ExtendedClaims::new),
    })
}

/// What Intel's extension of a PCK certificate says, if it is one.
pub fn pck(certificate: &Certificate) -> Option<Value> {
    if !certificate.common_name().contains("SGX PCK Certificate") {
        return None;
    }
    Some(match Pck::new(certificate) {
        Ok(pck) => json!({
            "fmspc": pck.fmspc,
            "pce_id": pck.pce_id,
            "cpu_svn": pck.cpu_svn,
            "sgx_svns": Hex(pck.svns.sgx),
            "pce_svn": pck.svns.pce,
            "ppid": pck.ppid,
            "sgx_type": pck.sgx_type,
            "platform_instance_id": pck.platform_instance_id,
            "configuration": pck.configuration,
        }),
        Err(error) => json!({"error": error.to_string()}),
    })
}

/// What an event log says, and where it leads.
pub fn event_log(bytes: &[u8]) -> anyhow::Result<Value> {
    let log = EventLog::read(bytes)?;
    let inconsistencies = log.inconsistencies().iter().map(|found| found.to_string()).collect::<Vec<_>>();
    Ok(json!({
        "kind": "event log (not compared with a quote)",
        "inconsistencies": inconsistencies,
        "replay": log.replay().map(Hex),
        "log": EventLogClaims::new(&log),
    }))
}

/// What TCB info says, as Intel's service answers.
pub fn tcb_info_answer(bytes: &[u8]) -> anyhow::Result<Value> {
    let signed = SignedText::tcb_info(bytes)?;
    Ok(json!({
        "kind": "TDX TCB info (not verified)",
        "tcb_info": tcb_info(&TcbInfo::from_json(&signed.text)?),
    }))
}

/// What a QE identity says, as Intel's service answers.
pub fn qe_identity_answer(bytes: &[u8]) -> anyhow::Result<Value> {
    let signed = SignedText::qe_identity(bytes)?;
    Ok(json!({
        "kind": "TDX QE identity (not verified)",
        "qe_identity": qe_identity(&QeIdentity::from_json(&signed.text)?),
    }))
}

/// Levels of a module or of the quoting enclave.
fn enclave_levels(levels: &[EnclaveLevel]) -> Vec<Value> {
    let level = |level: &EnclaveLevel| {
        json!({
            "status": level.tcb_status,
            "date": level.tcb_date,
            "advisories": level.advisory_ids,
            "isv_svn": level.tcb.isvsvn,
        })
    };
    levels.iter().map(level).collect()
}

fn tcb_info(info: &TcbInfo) -> Value {
    let levels = info.tcb_levels.iter().map(|level| {
        json!({
            "status": level.tcb_status,
            "date": level.tcb_date,
            "advisories": level.advisory_ids,
            "sgx_svns": Hex(level.tcb.sgx()),
            "pce_svn": level.tcb.pcesvn,
            "tdx_svns": Hex(level.tcb.tdx()),
        })
    });
    let modules = info.tdx_module_identities.iter().map(|module| {
        json!({
            "id": module.id,
            "mrsigner": module.mrsigner,
            "attributes": module.attributes,
            "attributes_mask": module.attributes_mask,
            "levels": enclave_levels(&module.tcb_levels),
        })
    });
    json!({
        "fmspc": info.fmspc,
        "pce_id": info.pce_id,
        "issue_date": info.issue_date,
        "next_update": info.next_update,
        "tcb_evaluation_data_number": info.tcb_evaluation_data_number,
        "module": {
            "mrsigner": info.tdx_module.mrsigner,
            "attributes": info.tdx_module.attributes,
            "attributes_mask": info.tdx_module.attributes_mask,
        },
        "modules": modules.collect::<Vec<_>>(),
        "levels": levels.collect::<Vec<_>>(),
    })
}

fn qe_identity(identity: &QeIdentity) -> Value {
    json!({
        "issue_date": identity.issue_date,
        "next_update": identity.next_update,
        "tcb_evaluation_data_number": identity.tcb_evaluation_data_number,
        "mrsigner": identity.mrsigner,
        "isv_prod_id": identity.isvprodid,
        "miscselect": identity.miscselect,
        "miscselect_mask": identity.miscselect_mask,
        "attributes": identity.attributes,
        "attributes_mask": identity.attributes_mask,
        "levels": enclave_levels(&identity.tcb_levels),
    })
}

/// What collateral says.
pub fn collateral(bytes: &[u8]) -> anyhow::Result<Value> {
    let document = CollateralDocument::from_json(bytes)?;
    let signer = |pem: &str| -> anyhow::Result<Value> {
        let ders = certificates(pem.as_bytes())?;
        let signer = ders.first().map(|der| Certificate::from_der(der)).transpose()?;
        Ok(json!(signer.as_ref().map(certificate)))
    };
    let mut tcb_info = tcb_info(&TcbInfo::from_json(&document.tcb_info)?);
    tcb_info["signer"] = signer(&document.tcb_info_issuer_chain)?;
    let mut qe_identity = qe_identity(&QeIdentity::from_json(&document.qe_identity)?);
    qe_identity["signer"] = signer(&document.qe_identity_issuer_chain)?;
    Ok(json!({
        "kind": "TDX collateral (not verified)",
        "tcb_info": tcb_info,
        "qe_identity": qe_identity,
        "root_crl": crl(&[&document.root_ca_crl.0])?,
        "pck_crl": crl(&[&document.pck_crl.0])?,
    }))
}
