//! COM1: a 16550 whose interrupt is an I/O APIC pin.

use std::sync::Arc;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use super::backend::Output;
use super::ioapic::IoApic;
use crate::layout::SERIAL_IRQ;

/// Pulses COM1's pin.
pub struct SerialInterrupt(Arc<IoApic>);

impl Trigger for SerialInterrupt {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse(SERIAL_IRQ);
        Ok(())
    }
}

/// The device.
pub type Com1 = Serial<SerialInterrupt, NoEvents, Output>;

/// COM1 writing to `output`.
pub fn com1(output: Output, ioapic: Arc<IoApic>) -> Com1 {
    Serial::new(SerialInterrupt(ioapic), output)
}
