//! Measurement registers: MRTD, which the launch builds, and the RTMRs, which the guest extends.

use sha2::{Digest, Sha384};

/// A SHA-384 value.
pub type Measurement = [u8; 48];

/// Bytes that one TDH.MR.EXTEND measures.
pub const CHUNK_BYTES: usize = 256;

/// MRTD while it is built: one SHA-384 over 128-byte command blocks and page contents (TDX module base specification,
/// "MRTD: Build-Time Measurement Register").
#[derive(Clone, Debug, Default)]
pub struct Mrtd(Sha384);

/// A command block: name, GPA at offset 16, zeros.
fn block(name: &[u8], gpa: u64) -> [u8; 128] {
    let mut block = [0u8; 128];
    for (to, from) in block.iter_mut().zip(name) {
        *to = *from;
    }
    for (to, from) in block.iter_mut().skip(16).zip(gpa.to_le_bytes()) {
        *to = from;
    }
    block
}

impl Mrtd {
    /// TDH.MEM.PAGE.ADD: the page's place.
    pub fn page_add(&mut self, gpa: u64) {
        self.0.update(block(b"MEM.PAGE.ADD", gpa));
    }

    /// TDH.MR.EXTEND of every chunk of a page: place and contents.
    pub fn extend_page(&mut self, gpa: u64, page: &[u8; 4096]) {
        for (i, chunk) in page.chunks_exact(CHUNK_BYTES).enumerate() {
            self.0.update(block(b"MR.EXTEND", gpa + (i * CHUNK_BYTES) as u64));
            self.0.update(chunk);
        }
    }

    /// TDH.MR.FINALIZE.
    pub fn finalize(&self) -> Measurement {
        self.0.clone().finalize().into()
    }
}

/// TDG.MR.RTMR.EXTEND: SHA-384 of the old value and the data.
pub fn extend(register: &mut Measurement, data: &Measurement) {
    let mut hash = Sha384::new();
    hash.update(*register);
    hash.update(data);
    *register = hash.finalize().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_contents_and_order_all_count() {
        let measure = |steps: &[(u64, bool, u8)]| {
            let mut mrtd = Mrtd::default();
            for &(gpa, extend, fill) in steps {
                mrtd.page_add(gpa);
                if extend {
                    mrtd.extend_page(gpa, &[fill; 4096]);
                }
            }
            mrtd.finalize()
        };
        let base = measure(&[(0, true, 1), (0x1000, true, 2)]);
        assert_ne!(base, measure(&[(0x1000, true, 2), (0, true, 1)]), "order");
        assert_ne!(base, measure(&[(0, true, 1), (0x2000, true, 2)]), "place");
        assert_ne!(base, measure(&[(0, true, 1), (0x1000, true, 3)]), "contents");
        assert_ne!(base, measure(&[(0, true, 1), (0x1000, false, 2)]), "measured or only added");
        assert_eq!(measure(&[(0, false, 1)]), measure(&[(0, false, 2)]), "contents that are not measured");
    }
}
