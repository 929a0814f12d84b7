//! The ID block: what a guest's owner signs so that the secure processor refuses to launch anything else in its name
//! (SEV-SNP firmware ABI 56860, 8.19.1 and tables "ID Block" and "ID Authentication Information Structure").
//!
//! The block names the launch digest and the guest policy, and gives the guest a family, an image and a security
//! version that its reports carry. The ID key signs the block; an author key may vouch for the ID key.

use sha2::{Digest, Sha384};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bits::GuestPolicy;
use crate::signature::Backend;
use crate::signing::SigningKey;

/// ECDSA on P-384 with SHA-384, as ID_KEY_ALGO and AUTH_KEY_ALGO.
const ALGORITHM_ECDSA_P384: u32 = 1;
/// P-384, as CURVE of a key.
const CURVE_P384: u32 = 2;
/// A coordinate or scalar of P-384.
const SCALAR_BYTES: usize = 48;

/// The ID block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdBlock {
    /// LD: the only launch digest that may be launched with this block.
    pub launch_digest: [u8; 48],
    /// FAMILY_ID of the guest's reports.
    pub family_id: [u8; 16],
    /// IMAGE_ID of the guest's reports.
    pub image_id: [u8; 16],
    version: U32,
    guest_svn: U32,
    policy: U64,
}
const _: () = assert!(size_of::<IdBlock>() == 96);

/// A key as the secure processor reads it: coordinates little-endian.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PublicKey {
    curve: U32,
    qx: [u8; 72],
    qy: [u8; 72],
    reserved: [u8; 880],
}
const _: () = assert!(size_of::<PublicKey>() == 0x404);

/// A signature as the secure processor reads it: scalars little-endian.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Signature {
    r: [u8; 72],
    s: [u8; 72],
    reserved: [u8; 368],
}
const _: () = assert!(size_of::<Signature>() == 512);

/// The ID authentication information: who signed the block.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdAuth {
    id_key_algo: U32,
    auth_key_algo: U32,
    reserved_0x8: [u8; 56],
    id_block_sig: Signature,
    id_key: PublicKey,
    reserved_0x644: [u8; 60],
    id_key_sig: Signature,
    author_key: PublicKey,
    reserved_0xc84: [u8; 892],
}
const _: () = assert!(size_of::<IdAuth>() == 4096);
const _: () = assert!(core::mem::offset_of!(IdAuth, id_key) == 0x240);
const _: () = assert!(core::mem::offset_of!(IdAuth, id_key_sig) == 0x680);
const _: () = assert!(core::mem::offset_of!(IdAuth, author_key) == 0x880);

/// Why an ID block cannot be signed, or is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdBlockError {
    /// The secure processor knows P-384 only.
    #[error("an ID or author key must be on P-384")]
    Curve,
    /// Not the version, or not the algorithms, that are defined.
    #[error("the ID block or its authentication uses a version, algorithm or curve that is not defined")]
    Unknown,
    /// Somebody else signed the block, or it was changed.
    #[error("the ID block is not signed by its ID key")]
    BlockSignature,
    /// Somebody else vouched for the ID key.
    #[error("the ID key is not signed by the author key")]
    KeySignature,
}

impl IdBlock {
    /// VERSION of the structure.
    const VERSION: u32 = 1;

    /// A block for one guest image.
    pub fn new(
        launch_digest: [u8; 48],
        family_id: [u8; 16],
        image_id: [u8; 16],
        guest_svn: u32,
        policy: GuestPolicy,
    ) -> Self {
        let version = Self::VERSION.into();
        Self {
            launch_digest,
            family_id,
            image_id,
            version,
            guest_svn: guest_svn.into(),
            policy: policy.0.into(),
        }
    }

    /// Reads a block, if it is of the version that is defined.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let block = Self::read_from_bytes(bytes).map_err(|_| IdBlockError::Unknown)?;
        if block.version.get() == Self::VERSION { Ok(block) } else { Err(IdBlockError::Unknown) }
    }

    /// GUEST_SVN of the guest's reports.
    pub fn guest_svn(&self) -> u32 {
        self.guest_svn.get()
    }

    /// The only guest policy that may be launched with this block.
    pub fn policy(&self) -> GuestPolicy {
        GuestPolicy(self.policy.get())
    }

    /// Signs the block with the ID key, and the ID key with the author key if there is one.
    pub fn sign(&self, id_key: &SigningKey, author_key: Option<&SigningKey>) -> Result<IdAuth, IdBlockError> {
        let mut auth = IdAuth::new_zeroed();
        auth.id_key_algo = ALGORITHM_ECDSA_P384.into();
        auth.id_key = PublicKey::of(id_key)?;
        auth.id_block_sig = Signature::by(id_key, self.as_bytes());
        if let Some(author_key) = author_key {
            auth.auth_key_algo = ALGORITHM_ECDSA_P384.into();
            auth.author_key = PublicKey::of(author_key)?;
            auth.id_key_sig = Signature::by(author_key, auth.id_key.as_bytes());
        }
        Ok(auth)
    }
}

impl IdAuth {
    /// Reads an authentication, if its algorithms and curves are those that are defined.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let auth = Self::read_from_bytes(bytes).map_err(|_| IdBlockError::Unknown)?;
        if auth.is_known() { Ok(auth) } else { Err(IdBlockError::Unknown) }
    }

    fn is_known(&self) -> bool {
        let known = |algorithm: U32, key: &PublicKey| {
            algorithm.get() == ALGORITHM_ECDSA_P384 && key.curve.get() == CURVE_P384
        };
        known(self.id_key_algo, &self.id_key)
            && (!self.has_author() || known(self.auth_key_algo, &self.author_key))
    }

    /// Whether an author key vouches for the ID key (AUTH_KEY_EN of SNP_LAUNCH_FINISH).
    pub fn has_author(&self) -> bool {
        self.auth_key_algo.get() != 0
    }

    /// ID_KEY_DIGEST of the guest's reports.
    pub fn id_key_digest(&self) -> [u8; 48] {
        self.id_key.digest()
    }

    /// AUTHOR_KEY_DIGEST of the guest's reports.
    pub fn author_key_digest(&self) -> Option<[u8; 48]> {
        self.has_author().then(|| self.author_key.digest())
    }

    /// Checks what the secure processor checks of `block` and this at SNP_LAUNCH_FINISH, the digest and policy aside.
    pub fn verify(&self, block: &IdBlock, backend: &Backend) -> Result<(), IdBlockError> {
        if block.version.get() != IdBlock::VERSION || !self.is_known() {
            return Err(IdBlockError::Unknown);
        }
        if !self.id_key.signed(backend, block.as_bytes(), &self.id_block_sig) {
            return Err(IdBlockError::BlockSignature);
        }
        if self.has_author() && !self.author_key.signed(backend, self.id_key.as_bytes(), &self.id_key_sig) {
            return Err(IdBlockError::KeySignature);
        }
        Ok(())
    }
}

impl PublicKey {
    fn of(key: &SigningKey) -> Result<Self, IdBlockError> {
        if !key.is_p384() {
            return Err(IdBlockError::Curve);
        }
        let (x, y) = key.public_coordinates();
        let (qx, qy) = (little_endian(&x), little_endian(&y));
        Ok(Self { curve: CURVE_P384.into(), qx, qy, reserved: [0; 880] })
    }

    fn digest(&self) -> [u8; 48] {
        Sha384::digest(self.as_bytes()).into()
    }

    fn signed(&self, backend: &Backend, message: &[u8], signature: &Signature) -> bool {
        const UNCOMPRESSED: u8 = 4;
        let (Some([x, y]), Some([r, s])) =
            (big_endian([&self.qx, &self.qy]), big_endian([&signature.r, &signature.s]))
        else {
            return false;
        };
        (backend.p384)(&[&[UNCOMPRESSED][..], &x, &y].concat(), message, &[r, s].concat())
    }
}

impl Signature {
    fn by(key: &SigningKey, message: &[u8]) -> Self {
        let signature = key.sign(message);
        let (r, s) = signature.split_at_checked(SCALAR_BYTES).unwrap_or_default();
        Self { r: little_endian(r), s: little_endian(s), reserved: [0; 368] }
    }
}

fn little_endian(big_endian: &[u8]) -> [u8; 72] {
    let mut number = [0; 72];
    number.iter_mut().zip(big_endian.iter().rev()).for_each(|(to, from)| *to = *from);
    number
}

/// `None` where a number is wider than the curve.
fn big_endian(numbers: [&[u8; 72]; 2]) -> Option<[[u8; SCALAR_BYTES]; 2]> {
    let mut converted = [[0; SCALAR_BYTES]; 2];
    for (to, from) in converted.iter_mut().zip(numbers) {
        let (low, high) = from.split_first_chunk::<SCALAR_BYTES>()?;
        if high.iter().any(|&byte| byte != 0) {
            return None;
        }
        *to = *low;
        to.reverse();
    }
    Some(converted)
}

/// The digest of a key in a report (ID_KEY_DIGEST, AUTHOR_KEY_DIGEST): what to put into policies.
pub fn key_digest(key: &SigningKey) -> Result<[u8; 48], IdBlockError> {
    Ok(PublicKey::of(key)?.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::RUSTCRYPTO;
    use crate::signing::tests::{p256_key, p384_key};

    fn block() -> IdBlock {
        IdBlock::new([1; 48], [2; 16], [3; 16], 4, GuestPolicy(0x30000))
    }

    #[test]
    fn a_block_has_the_firmwares_layout() {
        let bytes = block().as_bytes().to_vec();
        assert_eq!(bytes[..48], [1; 48]);
        assert_eq!((&bytes[48..64], &bytes[64..80]), (&[2; 16][..], &[3; 16][..]));
        assert_eq!(bytes[80..], [1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn signatures_hold_for_what_was_signed_only() {
        let (id, author) = (p384_key(), p384_key());
        for author in [None, Some(&author)] {
            let auth = block().sign(&id, author).unwrap();
            assert_eq!(auth.verify(&block(), &RUSTCRYPTO), Ok(()));
            assert_eq!(Ok(auth.id_key_digest()), key_digest(&id));
            assert_eq!(auth.author_key_digest(), author.map(|key| key_digest(key).unwrap()));
            let other = IdBlock { launch_digest: [9; 48], ..block() };
            assert_eq!(auth.verify(&other, &RUSTCRYPTO), Err(IdBlockError::BlockSignature));
        }
    }

    #[test]
    fn damage_is_named() {
        let (id, author) = (p384_key(), p384_key());
        let auth = block().sign(&id, Some(&author)).unwrap();
        for (at, error) in [
            (0, IdBlockError::Unknown),
            (4, IdBlockError::Unknown),
            (0x40, IdBlockError::BlockSignature),
            (0x40 + 60, IdBlockError::BlockSignature),
            (0x240, IdBlockError::Unknown),
            (0x250, IdBlockError::BlockSignature),
            (0x680, IdBlockError::KeySignature),
            (0x880, IdBlockError::Unknown),
            (0x890, IdBlockError::KeySignature),
        ] {
            let mut bytes = auth.as_bytes().to_vec();
            bytes[at] ^= 2;
            let damaged = IdAuth::read_from_bytes(&bytes).unwrap();
            assert_eq!(damaged.verify(&block(), &RUSTCRYPTO), Err(error), "byte {at:#x}");
        }
    }

    #[test]
    fn keys_on_other_curves_are_refused() {
        let (small, big) = (p256_key(), p384_key());
        assert_eq!(block().sign(&small, None).map(drop), Err(IdBlockError::Curve));
        assert_eq!(block().sign(&big, Some(&small)).map(drop), Err(IdBlockError::Curve));
        assert_eq!(key_digest(&small), Err(IdBlockError::Curve));
    }
}
