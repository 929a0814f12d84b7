//! MRTD: one SHA-384 over what the TDX module was told to add and to measure, in that order.
//!
//! TDH.MNG.INIT starts the hash. TDH.MEM.PAGE.ADD updates it with a 128-byte buffer: its name at byte 0 and the page's
//! address at byte 16. TDH.MR.EXTEND updates it with such a buffer and then with the 256 bytes at that address.
//! TDH.MR.FINALIZE ends it (Intel TDX Module Base Architecture Specification 348549, "Measurement and Attestation").

use core::fmt;

use sha2::{Digest, Sha384};
use zerocopy::little_endian::U64;
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::measure::{Gpa, PAGE_SIZE, hex::write_hex};

/// How much of a page one TDH.MR.EXTEND measures.
pub const CHUNK_BYTES: usize = 256;
const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtensionBuffer {
    name: [u8; 16],
    gpa: U64,
    zero: [u8; 104],
}
const _: () = assert!(size_of::<ExtensionBuffer>() == 128);

const PAGE_ADD: [u8; 16] = *b"MEM.PAGE.ADD\0\0\0\0";
const MR_EXTEND: [u8; 16] = *b"MR.EXTEND\0\0\0\0\0\0\0";

/// In which order a VMM adds and measures the pages of a range. MRTD depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum PageOrder {
    /// Each page is added and then measured, as Linux's KVM_TDX_INIT_MEM_REGION does (`tdx_gmem_post_populate`).
    #[default]
    PageByPage,
    /// All pages of a range are added, then all are measured: KVM_MEMORY_MAPPING and KVM_TDX_EXTEND_MEMORY of the
    /// patches of early 2024, which no mainline kernel has.
    TwoPass,
}

impl PageOrder {
    /// Every order with its name.
    pub const ALL: [(&'static str, Self); 2] =
        [("page-by-page", Self::PageByPage), ("two-pass", Self::TwoPass)];
}

/// The measurement of a TD's initial contents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mrtd(pub [u8; 48]);

impl fmt::Display for Mrtd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Mrtd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An MRTD under construction, as TDH.MNG.INIT leaves it.
#[derive(Clone, Debug, Default)]
pub struct MrtdBuilder(Sha384);

impl MrtdBuilder {
    /// TDH.MEM.PAGE.ADD of the page at `gpa`.
    pub fn page_add(&mut self, gpa: Gpa) {
        self.update(PAGE_ADD, gpa);
    }

    /// TDH.MR.EXTEND of the chunk at `gpa`.
    pub fn extend(&mut self, gpa: Gpa, chunk: &[u8; CHUNK_BYTES]) {
        self.update(MR_EXTEND, gpa);
        self.0.update(chunk);
    }

    fn update(&mut self, name: [u8; 16], gpa: Gpa) {
        self.0.update(ExtensionBuffer { name, gpa: gpa.0.into(), zero: [0; 104] }.as_bytes());
    }

    /// TDH.MR.EXTEND of every chunk of the page at `gpa`; what `bytes` lacks of a page is zeros.
    fn extend_page(&mut self, gpa: Gpa, bytes: &[u8]) {
        let mut page = ZERO_PAGE;
        for (to, from) in page.iter_mut().zip(bytes) {
            *to = *from;
        }
        let (chunks, _) = page.as_chunks::<CHUNK_BYTES>();
        for (chunk, at) in chunks.iter().zip((gpa.0..).step_by(CHUNK_BYTES)) {
            self.extend(Gpa(at), chunk);
        }
    }

    /// Adds the range of `len` bytes at `gpa`, and measures it if `bytes` are given: the range starts with them and
    /// goes on with zeros.
    pub fn range(&mut self, order: PageOrder, gpa: Gpa, len: u64, bytes: Option<&[u8]>) {
        let pages = || (gpa.0..gpa.0.saturating_add(len)).step_by(PAGE_SIZE).map(Gpa);
        let measured = |bytes| core::iter::zip(pages(), page_slices(bytes));
        match (order, bytes) {
            (_, None) => pages().for_each(|page| self.page_add(page)),
            (PageOrder::PageByPage, Some(bytes)) => measured(bytes).for_each(|(page, bytes)| {
                self.page_add(page);
                self.extend_page(page, bytes);
            }),
            (PageOrder::TwoPass, Some(bytes)) => {
                pages().for_each(|page| self.page_add(page));
                measured(bytes).for_each(|(page, bytes)| self.extend_page(page, bytes));
            }
        }
    }

    /// What TDH.MR.FINALIZE would leave now.
    pub fn value(&self) -> Mrtd {
        Mrtd(self.0.clone().finalize().into())
    }
}

/// The pages of `bytes`, then empty ones for ever.
fn page_slices(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(PAGE_SIZE).chain(core::iter::repeat(&[][..]))
}
