//! `id-block`: what a guest's owner signs, so that no other guest can be launched in its name.

use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_attestation::signing::SigningKey;
use cloister_attestation::snp::{GuestPolicy, Hex, IdBlock};
use serde_json::json;
use zerocopy::IntoBytes;

use crate::{output, parse_hex, read_key};

/// The guest policy of a guest without debugging and migration: SMT allowed, and the bit that is always one.
const DEFAULT_POLICY: &str = "0x30000";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Launch digest, as `measure snp` prints it
    #[arg(long, value_name = "HEX")]
    measurement: Hex<48>,
    /// Key that signs the block: PEM, P-384
    #[arg(long, value_name = "PEM")]
    id_key: PathBuf,
    /// Key that vouches for the ID key: PEM, P-384
    #[arg(long, value_name = "PEM")]
    author_key: Option<PathBuf>,
    /// Family of the guest, 16 bytes
    #[arg(long, value_name = "HEX", default_value = "00000000000000000000000000000000")]
    family_id: Hex<16>,
    /// Image of the guest, 16 bytes
    #[arg(long, value_name = "HEX", default_value = "00000000000000000000000000000000")]
    image_id: Hex<16>,
    /// Security version of the guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    guest_svn: u32,
    /// Guest policy that the guest must be launched with
    #[arg(long, value_name = "HEX", default_value = DEFAULT_POLICY, value_parser = parse_hex)]
    policy: u64,
    /// Write the block here, 96 bytes, as `cloister run --id-block` takes it
    #[arg(long, value_name = "FILE")]
    block: Option<PathBuf>,
    /// Write the authentication here, 4096 bytes, as `cloister run --id-auth` takes it
    #[arg(long, value_name = "FILE")]
    auth: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let key = |path: &Path| -> anyhow::Result<SigningKey> { read_key(path) };
    let (id_key, author_key) = (key(&args.id_key)?, args.author_key.as_deref().map(key).transpose()?);
    let (family_id, image_id) = (args.family_id.0, args.image_id.0);
    let policy = GuestPolicy(args.policy);
    let block = IdBlock::new(args.measurement.0, family_id, image_id, args.guest_svn, policy);
    let auth = block.sign(&id_key, author_key.as_ref())?;
    for (path, bytes) in [(&args.block, block.as_bytes()), (&args.auth, auth.as_bytes())] {
        if let Some(path) = path {
            std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let document = json!({
        "id_block": BASE64_STANDARD.encode(block.as_bytes()),
        "id_auth": BASE64_STANDARD.encode(auth.as_bytes()),
        "id_key_digest": Hex(auth.id_key_digest()),
        "author_key_digest": auth.author_key_digest().map(Hex),
    });
    output::print(&document, args.json)
}
