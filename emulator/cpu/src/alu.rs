//! Integer arithmetic on the host's own ALU, with its own flags.
//!
//! The only unsafe here is inline assembly that touches registers and flags, no memory.

use core::arch::asm;

use crate::flags::{CF, Flags, OF};
use crate::mem::Width;

/// Two-operand arithmetic at one width. Each method replaces the flags that the instruction writes.
pub(crate) trait Alu: Width {
    fn add(self, b: Self, f: &mut Flags) -> Self;
    fn adc(self, b: Self, f: &mut Flags) -> Self;
    fn sub(self, b: Self, f: &mut Flags) -> Self;
    fn sbb(self, b: Self, f: &mut Flags) -> Self;
    fn and(self, b: Self, f: &mut Flags) -> Self;
    fn or(self, b: Self, f: &mut Flags) -> Self;
    fn xor(self, b: Self, f: &mut Flags) -> Self;
    fn inc(self, f: &mut Flags) -> Self;
    fn dec(self, f: &mut Flags) -> Self;
    fn neg(self, f: &mut Flags) -> Self;
    /// Shifts and rotates by an already masked count; a count of zero changes nothing.
    fn rol(self, n: u8, f: &mut Flags) -> Self;
    fn ror(self, n: u8, f: &mut Flags) -> Self;
    fn rcl(self, n: u8, f: &mut Flags) -> Self;
    fn rcr(self, n: u8, f: &mut Flags) -> Self;
    fn shl(self, n: u8, f: &mut Flags) -> Self;
    fn shr(self, n: u8, f: &mut Flags) -> Self;
    fn sar(self, n: u8, f: &mut Flags) -> Self;
    /// One-operand MUL: low and high halves.
    fn mul(self, b: Self, f: &mut Flags) -> (Self, Self);
    /// One-operand IMUL: low and high halves.
    fn imul(self, b: Self, f: &mut Flags) -> (Self, Self);
}

macro_rules! binary {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut self, b: Self, f: &mut Flags) -> Self {
            // SAFETY: registers and flags only.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"),
                    "lahf", "seto al",
                    a = inout($class) self, b = in($class) b, out("ax") *f,
                    options(pure, nomem, nostack));
            }
            self
        }
    };
}

macro_rules! carry {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut self, b: Self, f: &mut Flags) -> Self {
            // SAFETY: registers and flags only.
            unsafe {
                asm!("bt eax, 8",
                    concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"),
                    "lahf", "seto al",
                    a = inout($class) self, b = in($class) b, inout("ax") *f,
                    options(pure, nomem, nostack));
            }
            self
        }
    };
}

macro_rules! unary {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut self, f: &mut Flags) -> Self {
            // SAFETY: registers and flags only. BT sets CF, which INC and DEC preserve.
            unsafe {
                asm!("bt eax, 8", concat!(stringify!($name), " {a", $m, "}"), "lahf", "seto al",
                    a = inout($class) self, inout("ax") *f,
                    options(pure, nomem, nostack));
            }
            self
        }
    };
}

macro_rules! shift {
    ($name:ident, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut self, n: u8, f: &mut Flags) -> Self {
            if n != 0 {
                // SAFETY: registers and flags only. The first two instructions put the captured flags back.
                unsafe {
                    asm!("add al, 0x7f", "sahf",
                        concat!(stringify!($name), " {a", $m, "}, cl"),
                        "lahf", "seto al",
                        a = inout($class) self, in("cl") n, inout("ax") *f,
                        options(pure, nomem, nostack));
                }
            }
            self
        }
    };
}

macro_rules! alu {
    ($t:ty, $signed:ty, $wide:ty, $swide:ty, $class:ident, $m:literal) => {
        impl Alu for $t {
            binary!(add, $class, $m);
            binary!(sub, $class, $m);
            binary!(and, $class, $m);
            binary!(or, $class, $m);
            binary!(xor, $class, $m);
            carry!(adc, $class, $m);
            carry!(sbb, $class, $m);
            unary!(inc, $class, $m);
            unary!(dec, $class, $m);
            unary!(neg, $class, $m);
            shift!(rol, $class, $m);
            shift!(ror, $class, $m);
            shift!(rcl, $class, $m);
            shift!(rcr, $class, $m);
            shift!(shl, $class, $m);
            shift!(shr, $class, $m);
            shift!(sar, $class, $m);

            #[inline(always)]
            fn mul(self, b: Self, f: &mut Flags) -> (Self, Self) {
                let wide = <$wide>::from(self) * <$wide>::from(b);
                let high = (wide >> Self::BITS) as Self;
                *f = *f & !(CF | OF) | if high != 0 { CF | OF } else { 0 };
                (wide as Self, high)
            }

            #[inline(always)]
            fn imul(self, b: Self, f: &mut Flags) -> (Self, Self) {
                let wide = <$swide>::from(self as $signed) * <$swide>::from(b as $signed);
                let low = wide as Self;
                let fits = wide == <$swide>::from(low as $signed);
                *f = *f & !(CF | OF) | if fits { 0 } else { CF | OF };
                (low, (wide >> Self::BITS) as Self)
            }
        }
    };
}

alu!(u8, i8, u16, i16, reg_byte, "");
alu!(u16, i16, u32, i32, reg, ":x");
alu!(u32, i32, u64, i64, reg, ":e");
alu!(u64, i64, u128, i128, reg, ":r");

/// SHLD and SHRD by an already masked count.
pub(crate) trait Double: Alu {
    fn shld(self, b: Self, n: u8, f: &mut Flags) -> Self;
    fn shrd(self, b: Self, n: u8, f: &mut Flags) -> Self;
}

macro_rules! double_method {
    ($name:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut self, b: Self, n: u8, f: &mut Flags) -> Self {
            if n != 0 {
                // SAFETY: registers and flags only. The first two instructions put the captured flags back.
                unsafe {
                    asm!("add al, 0x7f", "sahf",
                        concat!(stringify!($name), " {a", $m, "}, {b", $m, "}, cl"),
                        "lahf", "seto al",
                        a = inout(reg) self, b = in(reg) b, in("cl") n, inout("ax") *f,
                        options(pure, nomem, nostack));
                }
            }
            self
        }
    };
}

macro_rules! double {
    ($($t:ty, $m:literal;)*) => {$(
        impl Double for $t {
            double_method!(shld, $m);
            double_method!(shrd, $m);
        }
    )*};
}

double! {
    u16, ":x";
    u32, ":e";
    u64, ":r";
}
