//! What an authentic quote says, as a document: claims of version 2.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use super::authenticate::Authentic;
use super::chain::PckCa;
use super::collateral::Crls;
use super::event_log::{Event, EventLog, Label};
use super::pck::PlatformConfiguration;
use super::quote::{Td15Ex, TdReport};
use super::tcb::TcbVerdict;
use crate::snp::{BitsClaims, Hex, RootClaims};
use crate::x509::UnixTime;

/// The claims. Byte strings are lower-case hexadecimal.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", schemars(rename = "TdxClaims"))]
#[allow(missing_docs)]
pub struct Claims {
    /// `tdx`.
    #[cfg_attr(feature = "schema", schemars(extend("const" = "tdx")))]
    pub tee: &'static str,
    pub quote_version: u16,
    /// `1.0`, `1.5` or `1.5ex`.
    pub report_type: &'static str,
    pub mrtd: Hex<48>,
    pub rtmr0: Hex<48>,
    pub rtmr1: Hex<48>,
    pub rtmr2: Hex<48>,
    pub rtmr3: Hex<48>,
    pub report_data: Hex<64>,
    pub mrconfigid: Hex<48>,
    pub mrowner: Hex<48>,
    pub mrownerconfig: Hex<48>,
    pub mrseam: Hex<48>,
    pub mrsignerseam: Hex<48>,
    pub seam_attributes: Hex<8>,
    pub td_attributes: BitsClaims,
    pub xfam: BitsClaims,
    pub tee_tcb_svn: Hex<16>,
    /// From TDX 1.5 on.
    pub tee_tcb_svn2: Option<Hex<16>>,
    /// From TDX 1.5 on.
    pub mrservicetd: Option<Hex<48>>,
    /// Of TDX 1.5ex.
    pub extended: Option<ExtendedClaims>,
    pub tcb: TcbVerdict,
    pub platform: PlatformClaims,
    pub quoting_enclave: QeClaims,
    pub collateral: CollateralClaims,
    pub event_log: Option<EventLogClaims>,
    pub trust_root: RootClaims,
    /// The time that everything was checked at.
    pub verified_at: UnixTime,
}

/// What TDX 1.5ex adds to a report.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct ExtendedClaims {
    pub vm_id: u8,
    pub td_id: Hex<32>,
    pub device_info: Hex<48>,
    pub init_servtd_hash: Hex<48>,
    pub init_servtd_attributes: Hex<8>,
    pub init_cpu_svn: Hex<16>,
    pub init_tee_tcb_svn: Hex<16>,
    pub init_tee_fmspc: Hex<12>,
    pub cur_servtd_hash: Hex<48>,
    pub cur_servtd_attributes: Hex<8>,
}

impl ExtendedClaims {
    /// All of it.
    pub fn new(ex: &Td15Ex) -> Self {
        Self {
            vm_id: ex.vm_id,
            td_id: Hex(ex.td_id),
            device_info: Hex(ex.device_info),
            init_servtd_hash: Hex(ex.init_servtd_hash),
            init_servtd_attributes: Hex(ex.init_servtd_attributes),
            init_cpu_svn: Hex(ex.init_cpu_svn),
            init_tee_tcb_svn: Hex(ex.init_tee_tcb_svn),
            init_tee_fmspc: Hex(ex.init_tee_fmspc),
            cur_servtd_hash: Hex(ex.cur_servtd_hash),
            cur_servtd_attributes: Hex(ex.cur_servtd_attributes),
        }
    }
}

/// The platform, as its PCK certificate tells.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct PlatformClaims {
    pub fmspc: Hex<6>,
    pub pce_id: Hex<2>,
    pub cpu_svn: Hex<16>,
    /// Of the SGX components, 1 first: what TCB levels are compared with.
    pub sgx_svns: Hex<16>,
    pub pce_svn: u16,
    pub ppid: Hex<16>,
    pub sgx_type: u8,
    /// Absent where single packages are certified.
    pub platform_instance_id: Option<Hex<16>>,
    pub configuration: Option<PlatformConfiguration>,
    /// Who issued the certificate.
    pub pck_ca: PckCa,
    pub not_before: UnixTime,
    pub not_after: UnixTime,
    /// SHA-256 of the certificate.
    pub pck_sha256: Hex<32>,
}

/// The quoting enclave.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct QeClaims {
    pub mrenclave: Hex<32>,
    pub mrsigner: Hex<32>,
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    /// What it put into the quote's header.
    pub user_data: Hex<20>,
}

/// What the TCB was judged by.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct CollateralClaims {
    pub tcb_info_evaluation_number: u32,
    pub qe_identity_evaluation_number: u32,
    /// From when to when all of it holds.
    pub not_before: UnixTime,
    pub not_after: UnixTime,
    pub crls: Crls,
}

/// An event log that leads to the RTMRs.
///
/// Which kernel command line a boot loader measured is no claim: the label that says so is not measured, and neither
/// the bytes nor their place tell one from a command of the boot loader's configuration. Who must know pins RTMR2.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct EventLogClaims {
    pub events: Vec<EventClaims>,
}

/// One event. All but `log` is as true as the quote.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventClaims {
    /// 0 to 3; absent where nothing was extended.
    pub rtmr: Option<usize>,
    /// What the RTMR was extended by.
    pub digest: Hex<48>,
    /// Whether it is the line between the firmware and what it started.
    pub separator: bool,
    /// Whether the log has the bytes that the digest is of.
    pub data_measured: bool,
    /// Exactly those bytes, where they are text.
    pub measured_text: Option<String>,
    /// What the log says beside that.
    pub log: LogWord,
}

/// The log's word about an event: not measured, and so anybody's who had the log in his hands.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogWord {
    /// The type, by name where it has one.
    pub kind: String,
    /// What it says that the measured bytes are: GRUB's prefix, a variable's name.
    pub label: Option<String>,
    /// A description in place of the measured bytes, where it is text.
    pub text: Option<String>,
}

impl EventLogClaims {
    /// All events of a log.
    pub fn new(log: &EventLog<'_>) -> Self {
        Self { events: log.events().iter().map(EventClaims::new).collect() }
    }
}

impl EventClaims {
    fn new(event: &Event<'_>) -> Self {
        let data_measured = event.data.is_measured();
        let text = core::str::from_utf8(event.data.bytes()).ok().filter(|text| is_printable(text));
        Self {
            rtmr: event.rtmr.map(|rtmr| rtmr.index()),
            digest: Hex(*event.digest),
            separator: event.separator,
            data_measured,
            measured_text: text.filter(|_| data_measured).map(String::from),
            log: LogWord {
                kind: event.kind_name().map_or_else(|| format!("{:#x}", event.kind), String::from),
                label: event.label.map(Label::text),
                text: text.filter(|_| !data_measured).map(|text| text.trim_end_matches('\0').into()),
            },
        }
    }
}

/// Whether it is text, with or without NULs at its end.
fn is_printable(text: &str) -> bool {
    let text = text.trim_end_matches('\0');
    !text.is_empty() && !text.contains(|c: char| c.is_control() && c != '\n')
}

/// ATTRIBUTES by name.
fn td_attributes(report: &TdReport) -> BitsClaims {
    let attributes = report.td_attributes();
    let named = super::TdAttributes::BITS.iter().map(|&(name, bit)| (name, attributes.bit(bit)));
    BitsClaims { raw: format!("{:#x}", attributes.0), bits: named.collect() }
}

/// XFAM by name.
fn xfam(report: &TdReport) -> BitsClaims {
    let xfam = report.xfam();
    let named = super::Xfam::BITS.iter().map(|&(name, bit)| (name, xfam.bit(bit)));
    BitsClaims { raw: format!("{:#x}", xfam.0), bits: named.collect() }
}

impl Authentic {
    /// What the quote says, now to be believed.
    pub fn claims(&self) -> Claims {
        let base = &self.report.base;
        let [rtmr0, rtmr1, rtmr2, rtmr3] = base.rtmrs.map(Hex);
        Claims {
            tee: "tdx",
            quote_version: self.version,
            report_type: self.report.kind().name(),
            mrtd: Hex(base.mrtd),
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            report_data: Hex(base.report_data),
            mrconfigid: Hex(base.mrconfigid),
            mrowner: Hex(base.mrowner),
            mrownerconfig: Hex(base.mrownerconfig),
            mrseam: Hex(base.mrseam),
            mrsignerseam: Hex(base.mrsignerseam),
            seam_attributes: Hex(base.seam_attributes),
            td_attributes: td_attributes(&self.report),
            xfam: xfam(&self.report),
            tee_tcb_svn: Hex(base.tee_tcb_svn),
            tee_tcb_svn2: self.report.v15.as_ref().map(|v15| Hex(v15.tee_tcb_svn2)),
            mrservicetd: self.report.v15.as_ref().map(|v15| Hex(v15.mrservicetd)),
            extended: self.report.ex.as_ref().map(ExtendedClaims::new),
            tcb: self.tcb.clone(),
            platform: self.platform_claims(),
            quoting_enclave: QeClaims {
                mrenclave: Hex(self.qe_report.mrenclave),
                mrsigner: Hex(self.qe_report.mrsigner),
                isv_prod_id: self.qe_report.isv_prod_id(),
                isv_svn: self.qe_report.isv_svn(),
                user_data: Hex(self.user_data),
            },
            collateral: CollateralClaims {
                tcb_info_evaluation_number: self.evaluation_numbers.0,
                qe_identity_evaluation_number: self.evaluation_numbers.1,
                not_before: self.window.0,
                not_after: self.window.1,
                crls: self.crls.clone(),
            },
            event_log: self.event_log.clone(),
            trust_root: RootClaims {
                subject: self.root.subject_text().into(),
                sha256: Hex(self.root.fingerprint()),
            },
            verified_at: self.time.time,
        }
    }

    fn platform_claims(&self) -> PlatformClaims {
        let (pck, certificate) = (self.platform.pck(), self.platform.certificate());
        PlatformClaims {
            fmspc: pck.fmspc,
            pce_id: pck.pce_id,
            cpu_svn: pck.cpu_svn,
            sgx_svns: Hex(pck.svns.sgx),
            pce_svn: pck.svns.pce,
            ppid: pck.ppid,
            sgx_type: pck.sgx_type,
            platform_instance_id: pck.platform_instance_id,
            configuration: pck.configuration,
            pck_ca: self.platform.pck_ca(),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
            pck_sha256: Hex(certificate.fingerprint()),
        }
    }
}
