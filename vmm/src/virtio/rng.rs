//! Entropy: the host's random numbers, which a confidential guest mixes with its own and does not trust.

use std::io::Write;

use super::{Device, DeviceError, DeviceInfo, Queues};

/// Most that one request gets; a driver that wants more asks again.
const REQUEST_MAX: usize = 64 << 10;

/// The device.
pub struct Rng;

impl Device for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: 4,
            name: "rng",
            class: 0xff_0000,
            queue_sizes: &[64],
            features: 0,
            config: Vec::new(),
        }
    }

    fn queue_ready(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        queues.drain(index, |queues, chain| {
            let mut writer = queues.writer(chain)?;
            let mut bytes = vec![0; writer.available_bytes().min(REQUEST_MAX)];
            let host = |source| DeviceError::Host { what: "random numbers", source };
            random(&mut bytes).map_err(host)?;
            writer.write_all(&bytes).map_err(host)?;
            Ok(Some(bytes.len()))
        })
    }
}

fn random(mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and length are those of `bytes`.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => bytes = bytes.get_mut(got..).unwrap_or_default(),
            Err(_) => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::queue::tests::Driver;
    use super::*;

    #[test]
    fn every_request_is_filled() {
        let (mut driver, mut queues) = Driver::new(1);
        let buffers = driver.offer(0, &[], &[64, 32]);
        Rng.queue_ready(0, &mut queues).unwrap();
        assert_eq!(driver.returned(0), [96]);
        assert_ne!(driver.read(buffers[0], 64), [0; 64]);
        assert_ne!(driver.read(buffers[1], 32), [0; 32]);
    }
}
