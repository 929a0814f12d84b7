//! The launch digest: a chain of SHA-384 over one PAGE_INFO per page.

use alloc::vec::Vec;
use core::fmt;

use sha2::{Digest, Sha384};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use super::plan::PageType;
use crate::measure::{Gpa, PAGE_SIZE, hex::write_hex, parallel};

/// PAGE_INFO (SEV-SNP firmware ABI 56860, 8.17.2, table "Layout of the PAGE_INFO structure").
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PageInfo {
    digest_cur: [u8; 48],
    contents: [u8; 48],
    length: U16,
    page_type: u8,
    imi_page: u8,
    vmpl3_perms: u8,
    vmpl2_perms: u8,
    vmpl1_perms: u8,
    reserved: u8,
    gpa: U64,
}
const PAGE_INFO_BYTES: u16 = 0x70;
const _: () = assert!(size_of::<PageInfo>() == PAGE_INFO_BYTES as usize);

/// The digest that the attestation report carries as MEASUREMENT.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LaunchDigest(pub [u8; 48]);

impl fmt::Display for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A launch digest under construction.
#[derive(Clone, Debug)]
pub struct DigestChain(LaunchDigest);

impl Default for DigestChain {
    fn default() -> Self {
        Self(LaunchDigest([0; 48]))
    }
}

impl From<LaunchDigest> for DigestChain {
    /// The chain that has come as far as `digest`.
    fn from(digest: LaunchDigest) -> Self {
        Self(digest)
    }
}

impl DigestChain {
    /// What the chain takes of a page's contents.
    pub fn contents(page: &[u8]) -> [u8; 48] {
        Sha384::digest(page).into()
    }

    /// Adds one page. `contents` is `None` for the types whose contents are not measured, and for
    /// zero pages.
    pub fn page(&mut self, page_type: PageType, gpa: Gpa, contents: Option<&[u8]>) {
        self.page_with_digest(page_type, gpa, contents.map_or([0; 48], Self::contents));
    }

    /// Adds one page by [`DigestChain::contents`] of it; zeros where they are not measured.
    pub fn page_with_digest(&mut self, page_type: PageType, gpa: Gpa, contents: [u8; 48]) {
        let info = PageInfo {
            digest_cur: self.0.0,
            contents,
            length: PAGE_INFO_BYTES.into(),
            page_type: page_type.wire(),
            imi_page: 0,
            vmpl3_perms: 0,
            vmpl2_perms: 0,
            vmpl1_perms: 0,
            reserved: 0,
            gpa: gpa.0.into(),
        };
        self.0 = LaunchDigest(Sha384::digest(info.as_bytes()).into());
    }

    /// Adds consecutive pages of one type, each with its bytes; returns [`DigestChain::contents`] of each.
    ///
    /// Only the chain over the pages is serial: whoever is free hashes the next ones.
    pub fn pages(&mut self, page_type: PageType, gpa: Gpa, bytes: &[u8]) -> Vec<[u8; 48]> {
        let mut contents = Vec::with_capacity(bytes.len().div_ceil(PAGE_SIZE));
        let mut addresses = (gpa.0..).step_by(PAGE_SIZE).map(Gpa);
        let (pages, rest) = bytes.as_chunks();
        parallel::in_order(&Share::of(pages), Share::contents, |digests| {
            for (digest, gpa) in digests.iter().zip(&mut addresses) {
                let digest = digest.or(contents.last().copied()).unwrap_or([0; 48]);
                self.page_with_digest(page_type, gpa, digest);
                contents.push(digest);
            }
        });
        if let (false, Some(gpa)) = (rest.is_empty(), addresses.next()) {
            contents.push(Self::contents(rest));
            self.page(page_type, gpa, Some(rest));
        }
        contents
    }

    /// Adds `len` bytes of consecutive pages whose contents are not measured.
    pub fn pages_without_contents(&mut self, page_type: PageType, gpa: Gpa, len: u64) {
        for at in (gpa.0..gpa.0.saturating_add(len)).step_by(PAGE_SIZE) {
            self.page(page_type, Gpa(at), None);
        }
    }

    /// The digest so far.
    pub fn value(&self) -> LaunchDigest {
        self.0
    }
}

type Page = [u8; PAGE_SIZE];

/// Consecutive pages, as many as one thread takes at a time.
struct Share<'a> {
    pages: &'a [Page],
    /// The page before these.
    previous: Option<&'a Page>,
}

impl<'a> Share<'a> {
    /// Few enough to be done before another thread has started, enough to fill the lanes between two runs of padding.
    const PAGES: usize = 32;

    fn of(pages: &'a [Page]) -> Vec<Self> {
        let mut previous = None;
        let share =
            |pages: &'a [Page]| Self { pages, previous: core::mem::replace(&mut previous, pages.last()) };
        pages.chunks(Self::PAGES).map(share).collect()
    }

    /// [`DigestChain::contents`] of each page; `None` where it is that of the page before.
    ///
    /// Firmware images are padded, many with more than they hold.
    fn contents(&self) -> Vec<Option<[u8; 48]>> {
        let before = core::iter::once(self.previous).chain(self.pages.iter().map(Some));
        let pages: Vec<_> = self
            .pages
            .iter()
            .zip(before)
            .map(|(page, before)| Some(page).filter(|_| before != Some(page)))
            .collect();
        let distinct: Vec<_> = pages.iter().copied().flatten().collect();
        let mut digests = hash_each(&distinct).into_iter();
        pages.into_iter().map(|page| page.and_then(|_| digests.next())).collect()
    }
}

/// [`DigestChain::contents`] of each page.
#[cfg(not(feature = "std"))]
fn hash_each(pages: &[&Page]) -> Vec<[u8; 48]> {
    pages.iter().map(|page| DigestChain::contents(&page[..])).collect()
}

/// [`DigestChain::contents`] of each page.
#[cfg(feature = "std")]
fn hash_each(pages: &[&Page]) -> Vec<[u8; 48]> {
    use cloister_sha384_lanes::{LANES, Lanes};
    /// All lanes together take as long as two to three pages one by one.
    const WORTH_THE_LANES: usize = 3;

    let mut digests = Vec::with_capacity(pages.len());
    for batch in pages.chunks(LANES) {
        match (Lanes::detect(), batch) {
            (Some(lanes), &[first, ..]) if batch.len() >= WORTH_THE_LANES => {
                let mut messages = [first; LANES];
                messages.iter_mut().zip(batch).for_each(|(message, page)| *message = page);
                digests.extend(lanes.sha384(messages).into_iter().take(batch.len()));
            }
            _ => digests.extend(batch.iter().map(|page| DigestChain::contents(&page[..]))),
        }
    }
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pages_are_measured_as_one_after_another() {
        let mut bytes: Vec<u8> = (0..517 * PAGE_SIZE).map(|at| (at / 7) as u8).collect();
        // Padding, as firmware images have it: across shares, and between pages that differ.
        bytes[20 * PAGE_SIZE..100 * PAGE_SIZE].fill(0xff);
        bytes[200 * PAGE_SIZE..202 * PAGE_SIZE].fill(0);
        for pages in [0, 1, 31, 32, 33, 63, 64, 65, 128, 129, 517] {
            let bytes = &bytes[..pages * PAGE_SIZE];
            let (mut whole, mut single) = (DigestChain::default(), DigestChain::default());
            whole.pages(PageType::Normal, Gpa(0x1000), bytes);
            for (page, at) in bytes.chunks(PAGE_SIZE).zip((0x1000..).step_by(PAGE_SIZE)) {
                single.page(PageType::Normal, Gpa(at), Some(page));
            }
            assert_eq!(whole.value(), single.value(), "{pages} pages");
        }
    }
}
