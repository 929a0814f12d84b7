//! GetQuote: the guest asks for its TDREPORT to be signed, and goes on meanwhile.
//!
//! The request lies in shared pages (Intel GHCI, `TDG.VP.VMCALL<GetQuote>`; Linux `struct tdx_quote_buf`): a header, then the
//! TDREPORT, which the quote replaces. Whatever goes wrong is a status for the guest and a line for the operator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::qgs;
use crate::config::QuoteService;
use crate::devices::msi::{Message, MsiSink};
use crate::layout::PAGE_SIZE;
use crate::memory::DeviceMemory;
use crate::output::GuestLog;

/// Status of a GetQuote request in its buffer.
const SUCCESS: u64 = 0;
const IN_FLIGHT: u64 = u64::MAX;
const ERROR: u64 = 0x8000_0000_0000_0000;
const SERVICE_UNAVAILABLE: u64 = 0x8000_0000_0000_0001;

/// A buffer is one page at least. Linux gave 16 KiB first, then 128 KiB, and will ask the TDX module; this is well above all of that, and
/// bounds only how much of its own memory a guest can have looked through.
const MAX_BUFFER: u64 = 16 << 20;
const _: () = assert!(MAX_BUFFER > qgs::MAX_QUOTE as u64);
/// A TDREPORT.
const REPORT_BYTES: u32 = 1024;
/// Requests that one guest may have waiting.
const MAX_IN_FLIGHT: usize = 8;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BufferHeader {
    version: U64,
    status: U64,
    in_len: U32,
    out_len: U32,
}
const _: () = assert!(size_of::<BufferHeader>() == 24);

/// Why a request is not even begun: the guest's mistake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not whole shared pages.
    #[error("GetQuote: no shared buffer of whole pages at {gpa:#x}, {len:#x} bytes")]
    Buffer {
        /// Its address.
        gpa: u64,
        /// Its size.
        len: u64,
    },
    /// Whole shared pages, but more than anybody needs.
    #[error("GetQuote: the buffer of {len:#x} bytes at {gpa:#x} is too large: at most {MAX_BUFFER:#x}")]
    TooLarge {
        /// Its address.
        gpa: u64,
        /// Its size.
        len: u64,
    },
    /// Not version 1, or no TDREPORT in it.
    #[error("GetQuote: the buffer at {gpa:#x} holds no request of version 1 with a TDREPORT")]
    Header {
        /// Its address.
        gpa: u64,
    },
    /// Too many at once.
    #[error("GetQuote: {MAX_IN_FLIGHT} requests are waiting already")]
    Busy,
}

/// Brings TDREPORTs to the quoting service and quotes back.
pub struct QuoteBroker {
    service: Option<QuoteService>,
    memory: DeviceMemory,
    msi: Arc<dyn MsiSink>,
    log: Arc<GuestLog>,
    in_flight: AtomicUsize,
    /// Vector and APIC identifier of the guest's notification, packed; 0 for none.
    notify: AtomicU64,
}

impl QuoteBroker {
    /// A broker for one guest.
    pub fn new(
        service: Option<QuoteService>,
        memory: DeviceMemory,
        msi: Arc<dyn MsiSink>,
        log: Arc<GuestLog>,
    ) -> Arc<Self> {
        Arc::new(Self {
            service,
            memory,
            msi,
            log,
            in_flight: AtomicUsize::new(0),
            notify: AtomicU64::new(0),
        })
    }

    /// SetupEventNotifyInterrupt: `vector` on the vCPU with `apic_id` says that a request is done.
    pub fn set_notification(&self, vector: u8, apic_id: u32) {
        self.notify.store(u64::from(apic_id) << 8 | u64::from(vector), Ordering::Release);
    }

    /// GetQuote: checks the request and lets a thread of its own do it.
    pub fn begin(self: &Arc<Self>, gpa: u64, len: u64) -> Result<(), RequestError> {
        let report = self.take_report(gpa, len)?;
        let taken = self
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < MAX_IN_FLIGHT).then_some(n + 1));
        taken.map_err(|_| RequestError::Busy)?;
        self.answer(gpa, IN_FLIGHT, &[]);
        let broker = self.clone();
        let work = move || {
            let (status, quote) = broker.ask(&report, len);
            broker.in_flight.fetch_sub(1, Ordering::AcqRel);
            broker.answer(gpa, status, &quote);
            broker.notify();
        };
        if let Err(error) = std::thread::Builder::new().name("quote".into()).spawn(work) {
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            self.log.warn(&format_args!("GetQuote: no thread: {error}"));
            self.answer(gpa, ERROR, &[]);
        }
        Ok(())
    }

    /// The TDREPORT of a request that is as it should be.
    fn take_report(&self, gpa: u64, len: u64) -> Result<Vec<u8>, RequestError> {
        let whole = gpa.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
        let bad_buffer = RequestError::Buffer { gpa, len };
        if whole && len > MAX_BUFFER {
            return Err(RequestError::TooLarge { gpa, len });
        }
        if !whole || len == 0 || !self.memory.is_shared(gpa, len) {
            return Err(bad_buffer);
        }
        let mut header = BufferHeader::new_zeroed();
        let read = self.memory.read_slice(header.as_mut_bytes(), GuestAddress(gpa));
        read.map_err(|_| RequestError::Buffer { gpa, len })?;
        if header.version.get() != 1 || header.in_len.get() != REPORT_BYTES {
            return Err(RequestError::Header { gpa });
        }
        let mut report = vec![0; REPORT_BYTES as usize];
        let data = GuestAddress(gpa + size_of::<BufferHeader>() as u64);
        self.memory.read_slice(&mut report, data).map_err(|_| RequestError::Buffer { gpa, len })?;
        Ok(report)
    }

    fn ask(&self, report: &[u8], len: u64) -> (u64, Vec<u8>) {
        let Some(service) = &self.service else {
            self.log.warn(&"GetQuote: there is no quote generation service; give one with --quote-service");
            return (SERVICE_UNAVAILABLE, Vec::new());
        };
        let room = len as usize - size_of::<BufferHeader>();
        match qgs::quote(service, report, qgs::TIME) {
            Ok(quote) if quote.len() <= room => (SUCCESS, quote),
            Ok(quote) => {
                let bytes = quote.len();
                self.log
                    .warn(&format_args!("GetQuote: the quote has {bytes} bytes, the buffer room for {room}"));
                (ERROR, Vec::new())
            }
            Err(error) => {
                self.log.warn(&format_args!("GetQuote: {error}"));
                let gone = matches!(error, qgs::QgsError::Unreachable(_));
                (if gone { SERVICE_UNAVAILABLE } else { ERROR }, Vec::new())
            }
        }
    }

    /// Writes data and lengths, then the status, which the guest polls. A guest that took its buffer back gets nothing.
    fn answer(&self, gpa: u64, status: u64, quote: &[u8]) {
        let out_len = (quote.len() as u32).to_le_bytes();
        let data = self
            .memory
            .write_slice(quote, GuestAddress(gpa + size_of::<BufferHeader>() as u64))
            .and_then(|()| self.memory.write_slice(&out_len, GuestAddress(gpa + 20)));
        let written =
            data.and_then(|()| self.memory.write_slice(&status.to_le_bytes(), GuestAddress(gpa + 8)));
        if let Err(error) = written {
            self.log.warn(&format_args!("GetQuote: {error}"));
        }
    }

    fn notify(&self) {
        let packed = self.notify.load(Ordering::Acquire);
        let (vector, apic_id) = (packed & 0xff, packed >> 8);
        if vector == 0 {
            return;
        }
        // Destination bits 31:8 are in the upper half, as KVM_X2APIC_API_USE_32BIT_IDS has it.
        let address = 0xfee0_0000 | (apic_id & 0xff) << 12 | (apic_id & !0xff) << 32;
        self.msi.signal(Message { address, data: vector as u32 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::msi::tests::Recorder;
    use crate::memory::{SharedPages, map_ram};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::time::{Duration, Instant};

    const BUFFER: u64 = 0x4000;
    const LEN: u64 = 4 * PAGE_SIZE;

    fn guest(service: Option<QuoteService>) -> (Arc<QuoteBroker>, DeviceMemory, Arc<Recorder>) {
        guest_sharing(service, LEN)
    }

    fn guest_sharing(
        service: Option<QuoteService>,
        len: u64,
    ) -> (Arc<QuoteBroker>, DeviceMemory, Arc<Recorder>) {
        let ram = 0..BUFFER + len + PAGE_SIZE;
        let ranges = std::slice::from_ref(&ram);
        let ram = map_ram(ranges).unwrap();
        let shared = Arc::new(SharedPages::new(ranges));
        shared.set(BUFFER..BUFFER + len, true);
        let memory = DeviceMemory::confidential(ram, shared);
        let msi = Arc::new(Recorder::default());
        (QuoteBroker::new(service, memory.clone(), msi.clone(), Arc::new(GuestLog::new("test"))), memory, msi)
    }

    fn request(memory: &DeviceMemory, version: u64, in_len: u32) {
        let header = BufferHeader {
            version: U64::new(version),
            status: U64::new(0),
            in_len: U32::new(in_len),
            out_len: U32::new(0),
        };
        memory.write_slice(header.as_bytes(), GuestAddress(BUFFER)).unwrap();
        memory.write_slice(&[0x77; 1024], GuestAddress(BUFFER + 24)).unwrap();
    }

    fn settled(memory: &DeviceMemory) -> BufferHeader {
        let begin = Instant::now();
        loop {
            let mut header = BufferHeader::new_zeroed();
            memory.read_slice(header.as_mut_bytes(), GuestAddress(BUFFER)).unwrap();
            if header.status.get() != IN_FLIGHT || begin.elapsed() > Duration::from_secs(20) {
                return header;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A service that answers one request with `quote`.
    fn serve(path: &Path, quote: &'static [u8]) -> std::thread::JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut message = vec![0; 4 + 24 + 1024];
            stream.read_exact(&mut message).unwrap();
            let size = 24 + quote.len() as u32;
            let words = [1, 1, size, 0, 0, quote.len() as u32].map(u32::to_le_bytes).concat();
            stream.write_all(&[&size.to_be_bytes()[..], &words, quote].concat()).unwrap();
            message.split_off(28)
        })
    }

    #[test]
    fn a_quote_replaces_the_report_and_the_guest_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qgs");
        let service = serve(&path, b"a quote");
        let (broker, memory, msi) = guest(Some(QuoteService::Unix(path)));
        broker.set_notification(0x55, 0x102);
        request(&memory, 1, 1024);
        assert_eq!(broker.begin(BUFFER, LEN), Ok(()));
        assert_eq!(service.join().unwrap(), [0x77; 1024], "the service saw the report");
        let header = settled(&memory);
        assert_eq!((header.status.get(), header.out_len.get()), (SUCCESS, 7));
        let mut quote = [0; 7];
        memory.read_slice(&mut quote, GuestAddress(BUFFER + 24)).unwrap();
        assert_eq!(&quote, b"a quote");
        let begin = Instant::now();
        let mut sent = msi.take();
        while sent.is_empty() && begin.elapsed() < Duration::from_secs(20) {
            sent = msi.take();
        }
        assert_eq!(sent, [Message { address: 0x100_fee0_2000, data: 0x55 }]);
    }

    #[test]
    fn buffers_of_every_kernel_are_taken() {
        for len in [PAGE_SIZE, 16 << 10, 128 << 10, 1 << 20, MAX_BUFFER] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("qgs");
            let service = serve(&path, b"a quote");
            let (broker, memory, _) = guest_sharing(Some(QuoteService::Unix(path)), len);
            request(&memory, 1, 1024);
            assert_eq!(broker.begin(BUFFER, len), Ok(()), "{len:#x}");
            service.join().unwrap();
            assert_eq!(settled(&memory).status.get(), SUCCESS, "{len:#x}");
        }
    }

    #[test]
    fn without_a_service_the_guest_learns_that_there_is_none() {
        for service in [None, Some(QuoteService::Unix("/nonexistent/qgs".into()))] {
            let (broker, memory, _) = guest(service);
            request(&memory, 1, 1024);
            assert_eq!(broker.begin(BUFFER, LEN), Ok(()));
            assert_eq!(settled(&memory).status.get(), SERVICE_UNAVAILABLE);
        }
    }

    #[test]
    fn requests_that_are_not_whole_shared_pages_with_a_report_are_refused() {
        let (broker, memory, _) = guest(None);
        request(&memory, 1, 1024);
        for (gpa, len) in [
            (BUFFER, 0),
            (BUFFER, PAGE_SIZE / 2),
            (BUFFER + 8, PAGE_SIZE),
            (BUFFER, LEN + PAGE_SIZE),
            (BUFFER - PAGE_SIZE, PAGE_SIZE),
            (!0xfff, PAGE_SIZE),
            (BUFFER, MAX_BUFFER),
        ] {
            assert_eq!(broker.begin(gpa, len), Err(RequestError::Buffer { gpa, len }), "{gpa:#x} {len:#x}");
        }
        let too_large = broker.begin(BUFFER, MAX_BUFFER + PAGE_SIZE).unwrap_err();
        assert!(too_large.to_string().contains("too large"), "{too_large}");
        for (version, in_len) in [(2, 1024), (1, 0), (1, 1023), (1, u32::MAX)] {
            request(&memory, version, in_len);
            assert_eq!(broker.begin(BUFFER, LEN), Err(RequestError::Header { gpa: BUFFER }));
        }
    }
}
