//! `inspect` for what this program itself reads and writes: JSON documents, policies, ID blocks, CoRIM and tokens.

use std::sync::OnceLock;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cloister_attestation::corim::Contents;
use cloister_attestation::json as document_json;
use cloister_attestation::measure::snp::{LaunchTranscript, ReferenceValue};
use cloister_attestation::measure::tdx;
use cloister_attestation::snp::{BitsClaims, GuestPolicy, Hex, IdAuth, IdBlock, Policy};
use cloister_attestation::tdx::{Policy as TdxPolicy, SignedText};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::inspect_tdx;
use crate::measure::sev;

type Object = Map<String, Value>;

/// A kind of JSON document.
struct Kind {
    name: &'static str,
    /// Whether an object with these keys is most likely one.
    looks: fn(&Object) -> bool,
    /// What it says. The bytes are the whole document.
    describe: fn(Value, &[u8]) -> anyhow::Result<Value>,
}

/// In the order of the looks.
const KINDS: &[Kind] = &[
    Kind {
        name: "TDX collateral",
        looks: |object| object.contains_key("tcb_info"),
        describe: |_, bytes| inspect_tdx::collateral(bytes),
    },
    Kind {
        name: "TCB info",
        looks: |object| object.contains_key(SignedText::TCB_INFO),
        describe: |_, bytes| inspect_tdx::tcb_info_answer(bytes),
    },
    Kind {
        name: "QE identity",
        looks: |object| object.contains_key(SignedText::QE_IDENTITY),
        describe: |_, bytes| inspect_tdx::qe_identity_answer(bytes),
    },
    Kind {
        name: "launch transcript",
        looks: |object| object.contains_key("launch_digest"),
        describe: |document, _| {
            let transcript: LaunchTranscript = serde_json::from_value(document)?;
            Ok(json!({"kind": "launch transcript", "transcript": transcript}))
        },
    },
    Kind {
        name: "launch transcript of a TD",
        looks: |object| object.contains_key("ranges"),
        describe: |document, _| {
            let transcript: tdx::LaunchTranscript = serde_json::from_value(document)?;
            Ok(json!({"kind": "launch transcript", "transcript": transcript}))
        },
    },
    Kind {
        name: "verdict",
        looks: |object| object.contains_key("verdict") && object.contains_key("claims_version"),
        describe: |document, _| Ok(json!({"kind": "verdict (whoever wrote it)", "verdict": document})),
    },
    Kind {
        name: "reference value",
        looks: |object| {
            object.contains_key("tee") && (object.contains_key("measurement") || object.contains_key("mrtd"))
        },
        describe: |document, _| Ok(json!({"kind": "reference value", "value": reference_value(document)?})),
    },
    Kind {
        name: "policy",
        looks: |object| object.keys().any(|key| is_policy_key(key)),
        describe: |document, _| policy(&document),
    },
];

/// Whether this begins as an object or a list of objects does; `[` alone begins tables of TOML.
pub fn looks_like_json(bytes: &[u8]) -> bool {
    let text = document_json::without_mark(bytes).trim_ascii_start();
    text.strip_prefix(b"[").map_or(text, <[u8]>::trim_ascii_start).starts_with(b"{")
}

/// What a JSON document says.
pub fn json_document(bytes: &[u8]) -> anyhow::Result<Value> {
    let object: Object = match serde_json::from_slice(document_json::without_mark(bytes))? {
        Value::Array(values) => {
            // What `measure --cpus 1-64` prints.
            let values: anyhow::Result<Vec<_>> = values.into_iter().map(reference_value).collect();
            return Ok(
                json!({"kind": "reference values", "values": values.context("list of reference values")?}),
            );
        }
        Value::Object(object) => object,
        _ => bail!("neither an object nor a list of them"),
    };
    match KINDS.iter().find(|kind| (kind.looks)(&object)) {
        Some(kind) => (kind.describe)(Value::Object(object), bytes).with_context(|| kind.name),
        None => {
            let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            bail!("it is none of these: {}", names.join(", "))
        }
    }
}

fn reference_value(document: Value) -> anyhow::Result<Value> {
    Ok(match document["tee"].as_str() {
        Some("snp") => json!(serde_json::from_value::<ReferenceValue>(document)?),
        Some("tdx") => json!(serde_json::from_value::<tdx::ReferenceValue>(document)?),
        Some("sev" | "sev-es") => json!(serde_json::from_value::<sev::ReferenceValue>(document)?),
        _ => bail!("{} is no TEE", document["tee"]),
    })
}

/// Whether a policy of either TEE has a field of this name.
fn is_policy_key(key: &str) -> bool {
    static KEYS: OnceLock<Vec<String>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let policies = [serde_json::to_value(Policy::default()), serde_json::to_value(TdxPolicy::default())];
        let objects = policies.into_iter().flatten().filter_map(|policy| policy.as_object().cloned());
        objects.flat_map(|object| object.into_iter().map(|(key, _)| key)).collect()
    });
    keys.iter().any(|known| known == key)
}

/// Whether some line of a text begins a field or a table of a policy's.
pub fn looks_like_a_policy(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(document_json::without_mark(bytes)) else { return false };
    let key = |line: &str| -> String {
        let end = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        line.trim().trim_start_matches('[').split(end).next().unwrap_or_default().to_owned()
    };
    text.lines().filter(|line| line.contains(['=', '['])).any(|line| is_policy_key(&key(line)))
}

/// What a policy in TOML says.
pub fn toml_policy(bytes: &[u8]) -> anyhow::Result<Value> {
    policy(&toml::from_str(std::str::from_utf8(document_json::without_mark(bytes))?)?)
}

/// What a policy says, defaults included: of the TEE whose policy it can be, or of both.
fn policy(document: &Value) -> anyhow::Result<Value> {
    let snp = <Policy as Deserialize>::deserialize(document).map(|policy| json!(policy));
    let tdx = <TdxPolicy as Deserialize>::deserialize(document).map(|policy| json!(policy));
    match (snp, tdx) {
        (Ok(snp), Ok(tdx)) => Ok(json!({"kind": "policy", "snp": snp, "tdx": tdx})),
        (Ok(snp), Err(_)) => Ok(json!({"kind": "policy", "snp": snp})),
        (Err(_), Ok(tdx)) => Ok(json!({"kind": "policy", "tdx": tdx})),
        (Err(snp), Err(tdx)) => bail!("neither of SEV-SNP ({snp}) nor of TDX ({tdx})"),
    }
}

/// What an ID block says.
pub fn id_block(bytes: &[u8]) -> anyhow::Result<Value> {
    let block = IdBlock::parse(bytes)?;
    Ok(json!({
        "kind": "ID block (not compared with its signature)",
        "measurement": Hex(block.launch_digest),
        "family_id": Hex(block.family_id),
        "image_id": Hex(block.image_id),
        "guest_svn": block.guest_svn(),
        "guest_policy": BitsClaims::new(block.policy().0, GuestPolicy::BITS),
    }))
}

/// Who signed an ID block, according to its authentication.
pub fn id_auth(bytes: &[u8]) -> anyhow::Result<Value> {
    let auth = IdAuth::parse(bytes)?;
    Ok(json!({
        "kind": "ID authentication (not compared with an ID block)",
        "id_key_digest": Hex(auth.id_key_digest()),
        "author_key_digest": auth.author_key_digest().map(Hex),
    }))
}

/// What a CoRIM says.
pub fn corim(bytes: &[u8]) -> anyhow::Result<Value> {
    let mut document = serde_json::to_value(Contents::read(bytes)?)?;
    document["kind"] = "CoRIM (not verified)".into();
    Ok(document)
}

/// Whether this begins as the header of a JWT does: a JSON object in base64url.
pub fn looks_like_a_token(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"eyJ")
}

/// What a token says.
pub fn token(bytes: &[u8]) -> anyhow::Result<Value> {
    let text = std::str::from_utf8(bytes.trim_ascii())?;
    let parts: Vec<_> = text.split('.').collect();
    let [header, claims, signature] = parts[..] else {
        bail!("a token has three parts, and this {}", parts.len())
    };
    let decode = |what: &'static str, part: &str| URL_SAFE_NO_PAD.decode(part).context(what);
    let json = |what: &'static str, part: &str| -> anyhow::Result<Object> {
        serde_json::from_slice(&decode(what, part)?).context(what)
    };
    let (header, claims) = (json("its header", header)?, json("its claims", claims)?);
    decode("its signature", signature)?;
    let kind = match claims.contains_key("submods") {
        true => "EAT attestation result (not verified)",
        false => "JWT (not verified)",
    };
    Ok(json!({"kind": kind, "header": header, "claims": claims}))
}
