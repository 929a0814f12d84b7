//! MSI-X: the table of messages and their pending bits (PCI local bus specification 6.8.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Capability;
use crate::devices::msi::{Message, MsiSink};

const CAPABILITY_ID: u8 = 0x11;
/// Body of the capability: message control, table, PBA.
pub const CAPABILITY_BYTES: usize = 10;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const ENTRY_BYTES: usize = 16;
const ENTRY_MASKED: u32 = 1;

#[derive(Clone, Copy, Debug)]
struct Entry {
    message: Message,
    control: u32,
    pending: bool,
}

#[derive(Debug)]
struct State {
    enabled: bool,
    masked: bool,
    entries: Vec<Entry>,
}

/// The interrupts of one function.
pub struct Msix {
    state: Mutex<State>,
    sink: Arc<dyn MsiSink>,
}

impl Msix {
    /// `vectors` messages, all masked.
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Self {
        let entry = Entry { message: Message::default(), control: ENTRY_MASKED, pending: false };
        let entries = vec![entry; usize::from(vectors)];
        Self { state: Mutex::new(State { enabled: false, masked: false, entries }), sink }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capability for a table and PBA at offsets of BAR 0.
    pub fn capability(&self, table: u32, pba: u32) -> Capability {
        let last = (self.state().entries.len() as u16).saturating_sub(1);
        let body = [&last.to_le_bytes()[..], &table.to_le_bytes(), &pba.to_le_bytes()].concat();
        let writable = (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes().to_vec();
        Capability { id: CAPABILITY_ID, body, writable }
    }

    /// Message control was written.
    pub fn set_control(&self, control: u16) {
        let mut state = self.state();
        state.enabled = control & CONTROL_ENABLE != 0;
        state.masked = control & CONTROL_MASK_ALL != 0;
        for vector in 0..state.entries.len() {
            self.deliver(&mut state, vector);
        }
    }

    /// Raises a vector; one that does not exist is nobody's.
    pub fn raise(&self, vector: u16) {
        let mut state = self.state();
        if let Some(entry) = state.entries.get_mut(usize::from(vector)) {
            entry.pending = true;
            self.deliver(&mut state, usize::from(vector));
        }
    }

    fn deliver(&self, state: &mut State, vector: usize) {
        let open = state.enabled && !state.masked;
        if let Some(entry) = state.entries.get_mut(vector)
            && open
            && entry.pending
            && entry.control & ENTRY_MASKED == 0
        {
            entry.pending = false;
            self.sink.signal(entry.message);
        }
    }

    /// A read of the table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        data.fill(0);
        if let Some(entry) = state.entries.get(offset as usize / ENTRY_BYTES) {
            let bytes = entry.bytes();
            let from = bytes.iter().skip(offset as usize % ENTRY_BYTES);
            data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }

    /// A write of the table.
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        let vector = offset as usize / ENTRY_BYTES;
        if let Some(entry) = state.entries.get_mut(vector) {
            let mut bytes = entry.bytes();
            let to = bytes.iter_mut().skip(offset as usize % ENTRY_BYTES);
            to.zip(data).for_each(|(to, from)| *to = *from);
            entry.set_bytes(&bytes);
            self.deliver(&mut state, vector);
        }
    }

    /// A read of the pending bits.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (index, byte) in data.iter_mut().enumerate() {
            let at = (offset as usize).saturating_add(index);
            let bits = state.entries.iter().skip(at.saturating_mul(8)).take(8).enumerate();
            *byte = bits.fold(0, |byte, (bit, entry)| byte | u8::from(entry.pending) << bit);
        }
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY_BYTES] {
        let low = u128::from(self.message.address) | u128::from(self.message.data) << 64;
        (low | u128::from(self.control) << 96).to_le_bytes()
    }

    fn set_bytes(&mut self, bytes: &[u8; ENTRY_BYTES]) {
        let value = u128::from_le_bytes(*bytes);
        self.message = Message { address: value as u64, data: (value >> 64) as u32 };
        self.control = (value >> 96) as u32 & ENTRY_MASKED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::msi::tests::Recorder;

    fn msix() -> (Msix, Arc<Recorder>) {
        let sent = Arc::new(Recorder::default());
        (Msix::new(3, sent.clone()), sent)
    }

    #[test]
    fn an_unmasked_vector_sends_its_message() {
        let (msix, sent) = msix();
        msix.set_control(CONTROL_ENABLE);
        msix.table_write(16, &0xfee0_1000u32.to_le_bytes());
        msix.table_write(24, &0x42u32.to_le_bytes());
        msix.raise(1);
        assert_eq!(sent.take(), [], "masked from the start");
        let mut pending = [0; 8];
        msix.pba_read(0, &mut pending);
        assert_eq!(pending, [0b10, 0, 0, 0, 0, 0, 0, 0]);
        msix.table_write(28, &[0; 4]);
        let message = Message { address: 0xfee0_1000, data: 0x42 };
        assert_eq!(sent.take(), [message], "delivered when unmasked");
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        msix.raise(1);
        msix.raise(1);
        assert_eq!(sent.take(), []);
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(sent.take(), [message], "once");
        msix.set_control(0);
        msix.raise(1);
        assert_eq!(sent.take(), []);
    }

    #[test]
    fn vectors_and_entries_that_do_not_exist_are_harmless() {
        let (msix, sent) = msix();
        msix.set_control(CONTROL_ENABLE);
        msix.raise(3);
        msix.raise(0xffff);
        msix.table_write(48, &[0; 4]);
        msix.table_write(u64::MAX, &[0; 8]);
        let mut data = [1; 8];
        msix.table_read(u64::MAX - 7, &mut data);
        assert_eq!((data, sent.take().len()), ([0; 8], 0));
        msix.pba_read(u64::MAX - 7, &mut data);
    }
}
