//! A console of one port: hvc0.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::chain::Chain;
use super::{Device, DeviceError, DeviceInfo, Queues};
use crate::devices::backend::{Input, Output};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Most that is copied at once.
const CHUNK: usize = 4096;

/// The device.
pub struct Console {
    output: Output,
    input: Option<Input>,
    /// Input waits for the driver to offer buffers.
    blocked: bool,
}

impl Console {
    /// A console between the guest and the host's ends.
    pub fn new(output: Output, input: Option<Input>) -> Self {
        Self { output, input, blocked: false }
    }

    /// Copies one chain of output. Waits as long as its sink does for a slow reader.
    fn transmit(output: &mut Output, queues: &Queues, chain: &Chain) -> Result<Option<usize>, DeviceError> {
        let mut reader = queues.reader(chain)?;
        let mut bytes = [0; CHUNK];
        loop {
            let host = |source| DeviceError::Host { what: "console buffer", source };
            let read = reader.read(&mut bytes).map_err(host)?;
            if read == 0 {
                break;
            }
            let _ = output.write_all(bytes.get(..read).unwrap_or_default());
        }
        let _ = output.flush();
        Ok(Some(0))
    }

    /// Reads what the host typed into the driver's buffers.
    fn receive(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let Some(chain) = queues.pop(RECEIVE)? else {
            self.blocked = true;
            return Ok(());
        };
        self.blocked = false;
        let mut writer = queues.writer(&chain)?;
        let mut bytes = [0; CHUNK];
        let room = writer.available_bytes().min(CHUNK);
        let read = match &mut self.input {
            Some(input) => input.read(bytes.get_mut(..room).unwrap_or_default()),
            None => Ok(0),
        };
        match read {
            Ok(0) => self.input = None,
            Ok(read) => {
                let host = |source| DeviceError::Host { what: "console buffer", source };
                writer.write_all(bytes.get(..read).unwrap_or_default()).map_err(host)?;
                queues.push(&chain, read)?;
                return queues.notify(RECEIVE);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => self.input = None,
        }
        queues.unpop(RECEIVE);
        Ok(())
    }
}

impl Device for Console {
    fn info(&self) -> DeviceInfo {
        let config = vec![0; 12];
        DeviceInfo { kind: 3, name: "console", class: 0x07_8000, queue_sizes: &[64, 64], features: 0, config }
    }

    fn queue_ready(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        match index {
            TRANSMIT => {
                let output = &mut self.output;
                queues.drain(TRANSMIT, |queues, chain| Self::transmit(output, queues, chain))
            }
            _ => {
                self.blocked = false;
                Ok(())
            }
        }
    }

    fn host_fd(&self) -> Option<RawFd> {
        self.input.as_ref().filter(|_| !self.blocked).map(AsRawFd::as_raw_fd)
    }

    fn host_ready(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        self.receive(queues)
    }

    fn reset(&mut self) {
        self.blocked = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::tests::Driver;
    use super::*;
    use crate::output::sink::Sink;
    use std::fs::File;
    use std::io::Seek;

    #[test]
    fn what_the_guest_writes_arrives_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let (mut driver, mut queues) = Driver::new(2);
        let sink = Sink::new("test", file.try_clone().unwrap()).unwrap();
        let mut console = Console::new(Output::raw(sink.clone()), None);
        driver.offer(TRANSMIT, &[b"hello", b", "], &[]);
        driver.offer(TRANSMIT, &[b"world"], &[]);
        console.queue_ready(TRANSMIT, &mut queues).unwrap();
        assert_eq!(driver.returned(TRANSMIT), [0, 0]);
        sink.finish();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello, world");
    }

    #[test]
    fn what_the_host_types_waits_for_buffers() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (mut driver, mut queues) = Driver::new(2);
        let input = Input::File(File::from(std::os::fd::OwnedFd::from(reader)));
        let mut console = Console::new(Output::null(), Some(input));
        writer.write_all(b"ls\n").unwrap();
        assert!(console.host_fd().is_some());
        console.host_ready(&mut queues).unwrap();
        assert!(console.host_fd().is_none(), "no buffers, no polling");
        let buffers = driver.offer(RECEIVE, &[], &[16]);
        console.queue_ready(RECEIVE, &mut queues).unwrap();
        console.host_ready(&mut queues).unwrap();
        assert_eq!(driver.returned(RECEIVE), [3]);
        assert_eq!(driver.read(buffers[0], 3), b"ls\n");
        drop(writer);
        driver.offer(RECEIVE, &[], &[16]);
        console.host_ready(&mut queues).unwrap();
        assert!(console.host_fd().is_none(), "the end of input is not polled");
    }
}
