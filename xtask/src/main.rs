//! `cargo xtask`: everything a developer does with this repository that is more than `cargo build`.

mod additions;
mod apt;
mod bench;
mod book;
mod book_commands;
mod boot;
mod command;
mod cpio;
mod demo;
mod elf;
mod firmware;
mod fuzz;
mod image;
mod kernel;
mod licences;
mod measurement;
mod modules;
mod paths;
mod pc;
mod progress;
mod purity;
mod qemu;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Build, demo, test and bench", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Launch an attested guest on softkvm and release a secret to it.
    Demo(demo::Options),
    /// Figures beside those of peers.
    Bench(bench::Options),
    /// Mutated inputs for every parser and for whole verifications.
    Fuzz(fuzz::Options),
    /// Everything that must hold, or the checks that are named.
    Test(test::Options),
    /// Build the book.
    Book,
    /// Build the firmware ROM.
    Firmware,
    /// Fetch the guest kernel through the machine's package manager.
    Kernel(kernel::Options),
    /// Build the guest's initramfs.
    Image {
        /// Kernel to take modules from, as for `kernel`.
        #[command(flatten)]
        kernel: kernel::Options,
        /// What else goes into it.
        #[command(flatten)]
        additions: additions::Options,
        /// Where to write it.
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(options) => demo::run(&options)?,
        Command::Bench(options) => bench::run(&options)?,
        Command::Fuzz(options) => fuzz::run(&options)?,
        Command::Test(options) => test::run(&options)?,
        Command::Book => println!("{}", book::build()?.display()),
        Command::Firmware => {
            let rom = firmware::build()?;
            println!("{}", rom.display());
        }
        Command::Kernel(options) => {
            let kernel = kernel::obtain(&options)?;
            println!("{} ({})", kernel.image.display(), kernel.version);
        }
        Command::Image { kernel, additions, output } => {
            let kernel = kernel::obtain(&kernel)?;
            let image = image::build_with(&kernel, &additions, output)?;
            println!("{}", image.display());
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
