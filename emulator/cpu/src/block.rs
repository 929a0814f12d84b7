//! Decoded blocks: finding, validating and dropping them.
//!
//! A block is keyed by the *host* address of its first byte and the decoding mode. A remapped guest page is thus
//! another block by construction, and a host page that changed behind the processor's back is caught by comparing
//! source bytes once per epoch. The processor's own stores are caught by the TLB: pages with valid blocks have no
//! write tag.

use core::hash::{BuildHasherDefault, Hasher};
use core::ptr::NonNull;
use std::collections::HashMap;

use crate::cpu::{Cpu, Result, mode};
use crate::decode::{self, MAX_OPS};
use crate::env::Access;
use crate::mem;
use crate::op::{Insn, Op, chain};
use crate::ops;
use crate::state::Exception;

/// Operations kept before everything is dropped and decoded anew.
const MAX_CACHED_OPS: usize = 1 << 20;
const JUMP_SLOTS: usize = 8192;
const PAGE: u64 = 4096;
const MAX_INSN: usize = 15;

/// A remembered way to a block.
#[derive(Clone, Copy)]
struct Link {
    /// RIP in a block's links, a linear address in the jump cache.
    from: u64,
    /// Epoch and mode for which `from` leads to `block`.
    stamp: u64,
    block: *mut Block,
}

const NO_LINK: Link = Link { from: 0, stamp: 0, block: core::ptr::null_mut() };

impl Link {
    /// The block, if the way is known to be right still.
    #[inline(always)]
    fn get(&self, from: u64, stamp: u64) -> Option<NonNull<Block>> {
        // Stamps begin at an epoch of 1, so an empty link never matches.
        if self.from == from && self.stamp == stamp { NonNull::new(self.block) } else { None }
    }
}

/// Straight-line code within a page.
pub(crate) struct Block {
    ops: NonNull<[Op]>,
    links: [Link; 2],
    /// The link that is replaced next.
    victim: u8,
    /// The source bytes lie on two pages: compared every time, and never linked to.
    crossing: bool,
    pub(crate) count: u16,
    key: u64,
    bytes: Box<[u8]>,
    insns: NonNull<[Insn]>,
    /// The page that holds the source bytes.
    page: *mut CodePage,
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: both came from `Box::into_raw` in `Block::new`.
        unsafe {
            drop(Box::from_raw(self.ops.as_ptr()));
            drop(Box::from_raw(self.insns.as_ptr()));
        }
    }
}

impl Block {
    fn new(key: u64, decoded: decode::Decoded, bytes: &[u8]) -> Self {
        let decode::Decoded { mut ops, insns, with_insn, count, .. } = decoded;
        let insns = Box::into_raw(insns.into_boxed_slice());
        for (op, insn) in with_insn {
            // SAFETY: the decoder numbers instructions as it pushes them, so `insn` is in bounds.
            ops[op].imm = unsafe { insns.cast::<Insn>().add(insn) } as u64;
        }
        let ops = Box::into_raw(ops.into_boxed_slice());
        Self {
            // SAFETY: `Box::into_raw` never returns null.
            ops: unsafe { NonNull::new_unchecked(ops) },
            links: [NO_LINK; 2],
            victim: 0,
            crossing: false,
            count,
            key,
            bytes: bytes.into(),
            // SAFETY: as above.
            insns: unsafe { NonNull::new_unchecked(insns) },
            page: core::ptr::null_mut(),
        }
    }

    #[inline(always)]
    pub(crate) fn first(&self) -> *const Op {
        self.ops.as_ptr().cast()
    }

    /// The successor at `rip`, if it is known.
    #[inline(always)]
    pub(crate) fn successor(&self, rip: u64, stamp: u64) -> Option<NonNull<Self>> {
        self.links[0].get(rip, stamp).or_else(|| self.links[1].get(rip, stamp))
    }

    /// A block that once was the successor at `rip` in this mode, and may be again.
    fn former_successor(&self, rip: u64, mode: u8) -> Option<NonNull<Self>> {
        let link = self.links.iter().find(|l| l.from == rip && l.stamp & 15 == u64::from(mode))?;
        NonNull::new(link.block)
    }

    fn set_successor(&mut self, rip: u64, stamp: u64, block: NonNull<Self>) {
        let stale = self.links.iter().position(|l| l.from == rip || l.stamp != stamp);
        let at = stale.unwrap_or(usize::from(self.victim & 1));
        self.victim ^= 1;
        self.links[at] = Link { from: rip, stamp, block: block.as_ptr() };
    }

    /// Ends the running block after the operation `current`: what follows it was overwritten.
    fn truncate(&mut self, current: *const Op) {
        let first = self.ops.as_ptr().cast::<Op>();
        for i in 0..self.ops.len() {
            // SAFETY: `i` is in bounds, and no reference to any operation but the current one is live.
            unsafe {
                if first.cast_const().add(i) == current && i + 1 < self.ops.len() {
                    let next = first.add(i + 1);
                    (*next).end = (*next).start;
                    (*next).run = chain(ops::branch::fall_through);
                }
            }
        }
    }
}

/// A host page with decoded blocks.
struct CodePage {
    host: u64,
    /// Blocks are valid and the page is write-protected in the TLB.
    armed: bool,
    /// 64-byte lines with decoded bytes.
    lines: u64,
    blocks: Vec<NonNull<Block>>,
}

/// Fibonacci hashing: the keys are addresses.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        let x = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ x >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type AddressMap<V> = HashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// All blocks of one processor.
pub(crate) struct Blocks {
    all: Vec<NonNull<Block>>,
    by_key: AddressMap<NonNull<Block>>,
    pages: AddressMap<NonNull<CodePage>>,
    jumps: Box<[Link]>,
    ops: usize,
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            all: Vec::new(),
            by_key: AddressMap::default(),
            pages: AddressMap::default(),
            jumps: vec![NO_LINK; JUMP_SLOTS].into_boxed_slice(),
            ops: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.by_key.clear();
        for (_, page) in self.pages.drain() {
            // SAFETY: each came from `Box::into_raw` in `page`, and the blocks that know it go now, too.
            drop(unsafe { Box::from_raw(page.as_ptr()) });
        }
        self.jumps.fill(NO_LINK);
        self.ops = 0;
        for block in self.all.drain(..) {
            // SAFETY: each came from `Box::into_raw` in `add`, and every map that led to it is empty now.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
    }

    #[inline(always)]
    fn jump_slot(linear: u64) -> usize {
        (linear ^ linear >> 12) as usize & (JUMP_SLOTS - 1)
    }

    /// The code page at a host address.
    fn page(&mut self, host: u64) -> NonNull<CodePage> {
        *self.pages.entry(host).or_insert_with(|| {
            let page = CodePage { host, armed: false, lines: 0, blocks: Vec::new() };
            // SAFETY: `Box::into_raw` never returns null.
            unsafe { NonNull::new_unchecked(Box::into_raw(Box::new(page))) }
        })
    }

    fn add(&mut self, block: Block) -> NonNull<Block> {
        let key = block.key;
        self.ops += usize::from(block.count);
        // SAFETY: `Box::into_raw` never returns null.
        let block = unsafe { NonNull::new_unchecked(Box::into_raw(Box::new(block))) };
        self.all.push(block);
        self.by_key.insert(key, block);
        block
    }

    /// Is a store to this host range to be kept out of the TLB?
    pub(crate) fn is_code(&self, host_page: u64) -> bool {
        // SAFETY: the map owns the page.
        self.pages.get(&host_page).is_some_and(|p| unsafe { p.as_ref().armed })
    }
}

/// The 64-byte lines that `[start, start + n)` touches within its page.
fn lines(start: u64, n: usize) -> u64 {
    let first = start % PAGE / 64;
    let last = ((start % PAGE + n as u64).saturating_sub(1) / 64).clamp(first, 63);
    (u64::MAX >> (63 - (last - first))) << first
}

impl Cpu {
    /// The processor is about to store into a host range that may hold decoded code.
    #[cold]
    pub(crate) fn code_write(&mut self, host: u64, n: usize) {
        let Some(mut page) = self.blocks.pages.get(&(host & !(PAGE - 1))).copied() else { return };
        // SAFETY: the map owns the page.
        let page = unsafe { page.as_mut() };
        if !page.armed || page.lines & lines(host, n) == 0 {
            return;
        }
        page.armed = false;
        // Every way to a block of the page must be proven again.
        self.epoch += 1;
        if !self.block.is_null() && page.blocks.iter().any(|b| b.as_ptr() == self.block) {
            // SAFETY: the cache owns the block; its operations are reached by raw pointer only.
            unsafe { (*self.block).truncate(self.current) };
        }
    }

    /// Epoch and mode.
    #[inline(always)]
    pub(crate) fn stamp(&self) -> u64 {
        self.epoch << 4 | u64::from(self.mode)
    }

    /// The block at RIP, when the last block does not know the way.
    #[cold]
    #[inline(never)]
    pub(crate) fn look_up(&mut self) -> Result<NonNull<Block>> {
        let linear = self.linear_rip();
        let stamp = self.stamp();
        let slot = Blocks::jump_slot(linear);
        // SAFETY: `block` is null or a block that the cache owns.
        let former =
            unsafe { self.block.as_ref() }.and_then(|b| b.former_successor(self.state.rip, self.mode));
        let block = match former {
            Some(block) => self.find_block(linear, Some(block))?,
            None => {
                let known = self.blocks.jumps[slot];
                match known.get(linear, stamp) {
                    Some(block) => block,
                    None => {
                        let same = known.from == linear && known.stamp & 15 == u64::from(self.mode);
                        self.find_block(linear, if same { NonNull::new(known.block) } else { None })?
                    }
                }
            }
        };
        // SAFETY: the cache owns the block.
        if unsafe { block.as_ref().crossing } {
            return Ok(block);
        }
        if former.is_none() {
            self.blocks.jumps[slot] = Link { from: linear, stamp: self.stamp(), block: block.as_ptr() };
        }
        if !self.block.is_null() {
            // SAFETY: the cache owns the block; `find_block` clears `self.block` if it frees blocks.
            unsafe { (*self.block).set_successor(self.state.rip, self.stamp(), block) };
        }
        Ok(block)
    }

    /// Finds or decodes the block at `linear`, and proves that its source bytes are still there.
    fn find_block(&mut self, linear: u64, candidate: Option<NonNull<Block>>) -> Result<NonNull<Block>> {
        let host = self.fetch_pointer(linear)?;
        let key = (host as u64) << 8 | u64::from(self.mode & 7);
        // SAFETY: the cache owns the candidate.
        let candidate = candidate.filter(|c| unsafe { c.as_ref().key } == key);
        if let Some(block) = candidate.or_else(|| self.blocks.by_key.get(&key).copied()) {
            // SAFETY: the cache owns the block.
            let b = unsafe { block.as_ref() };
            if b.crossing {
                // Compared piecewise.
                let room = (PAGE - linear % PAGE) as usize;
                let (head, tail) = b.bytes.split_at(room.min(b.bytes.len()));
                let next = self.fetch_pointer((linear | 0xfff).wrapping_add(1))?;
                // SAFETY: the TLB granted both pages, and the pieces stay inside them.
                if unsafe { mem::equal(host, head) && mem::equal(next, tail) } {
                    return Ok(block);
                }
            // SAFETY: the TLB granted the page and the block stays inside it.
            } else if unsafe { mem::equal(host, &b.bytes) } {
                self.arm(host as u64, block);
                return Ok(block);
            }
        }
        self.decode_block(linear, host, key)
    }

    fn decode_block(&mut self, linear: u64, host: *mut u8, key: u64) -> Result<NonNull<Block>> {
        if self.blocks.ops > MAX_CACHED_OPS {
            self.block = core::ptr::null_mut();
            self.blocks.clear();
        }
        let mut bytes = [0u8; MAX_OPS * MAX_INSN];
        let room = (PAGE - linear % PAGE) as usize;
        let mut n = room.min(bytes.len());
        // SAFETY: the TLB granted the page; `n` stays inside it and the buffer.
        unsafe { mem::copy(bytes.as_mut_ptr(), host, n) };
        let single = self.mode & mode::SINGLE != 0;
        let mut decoded = decode::decode(&bytes[..n], self.mode & 3, single);
        let crossing = decoded.length == 0;
        if crossing {
            let rest = MAX_INSN.min(bytes.len() - n);
            let next = self.fetch_pointer((linear | 0xfff).wrapping_add(1))?;
            // SAFETY: the TLB granted the next page; `rest` bytes fit there and in the buffer.
            unsafe { mem::copy(bytes.as_mut_ptr().add(n), next, rest) };
            n += rest;
            decoded = decode::decode(&bytes[..n], self.mode & 3, true);
        }
        let length = usize::from(decoded.length);
        if length == 0 {
            return Err(self.fault(Exception::GP0));
        }
        let mut block = self.blocks.add(Block::new(key, decoded, &bytes[..length]));
        if length <= room {
            self.arm(host as u64, block);
        } else {
            // SAFETY: just added.
            unsafe { block.as_mut().crossing = true };
        }
        Ok(block)
    }

    /// Write-protects the page of a valid block.
    fn arm(&mut self, host: u64, mut block: NonNull<Block>) {
        // SAFETY: the cache owns the block.
        let b = unsafe { block.as_mut() };
        if b.page.is_null() {
            let mut page = self.blocks.page(host & !(PAGE - 1));
            b.page = page.as_ptr();
            // SAFETY: the map owns the page.
            let page = unsafe { page.as_mut() };
            page.lines |= lines(host, b.bytes.len());
            page.blocks.push(block);
        }
        // SAFETY: the map owns the page, and lives as long as the block.
        let page = unsafe { &mut *b.page };
        if !page.armed {
            page.armed = true;
            self.tlb.protect(page.host);
        }
    }

    /// The host address of an instruction byte.
    fn fetch_pointer(&mut self, linear: u64) -> Result<*mut u8> {
        let set = if self.mode & mode::USER != 0 { crate::tlb::USER } else { crate::tlb::SUPERVISOR };
        let entry = self.tlb.entry(set, linear);
        if entry.exec == linear & !0xfff {
            return Ok(entry.addend.wrapping_add(linear) as *mut u8);
        }
        match self.fill(linear, Access::Execute, set)? {
            crate::access::Target::Host(p) => Ok(p),
            crate::access::Target::Mmio(_) => Err(self.ud()),
        }
    }
}
