use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use lb_common::bench::{Setup, TEMPLATE_LEN};

/// The driver program, once with the program under test and once with the stub.
pub struct Driver {
    measured: Ebpf,
    stub: Ebpf,
}

/// What is sent, and what comes of it.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    /// The frame.
    pub frame: &'a [u8],
    /// How many flows it is varied over, a power of two.
    pub flows: u32,
    /// Whether it is an IPv6 frame.
    pub ipv6: bool,
    /// By how many bytes it grows.
    pub grow: i32,
    /// What the program answers.
    pub verdict: u32,
}

impl Driver {
    pub fn new(program: &ProgramFd) -> Result<Self> {
        let mut measured = load()?;
        install(&mut measured, program)?;
        let mut stub = load()?;
        let fd = {
            let stub: &mut Xdp = stub
                .program_mut("weir_bench_stub")
                .context("no stub")?
                .try_into()?;
            stub.load()?;
            stub.fd()?.try_clone()?
        };
        install(&mut stub, &fd)?;
        Ok(Self { measured, stub })
    }

    /// Sends `packets` packets to the program under test. Returns the time of one.
    pub fn run(&mut self, load: &Load<'_>, packets: u32) -> Result<f64> {
        run(&mut self.measured, load, packets)
    }

    /// Does as much with the stub.
    pub fn run_stub(&mut self, load: &Load<'_>, packets: u32) -> Result<f64> {
        run(&mut self.stub, load, packets)
    }
}

fn load() -> Result<Ebpf> {
    let mut ebpf = Ebpf::load(lb_user::dataplane::BENCH_OBJECT)?;
    let driver: &mut Xdp = ebpf
        .program_mut("weir_bench")
        .context("no driver")?
        .try_into()?;
    driver.load()?;
    Ok(ebpf)
}

fn install(driver: &mut Ebpf, program: &ProgramFd) -> Result<()> {
    let mut array = ProgramArray::try_from(driver.map_mut("PROGRAM").context("no PROGRAM")?)?;
    array.set(0, program, 0)?;
    Ok(())
}

fn run(driver: &mut Ebpf, load: &Load<'_>, packets: u32) -> Result<f64> {
    let mut template = [0; TEMPLATE_LEN / 8];
    let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut template);
    bytes.copy_from_slice(&load.frame[..TEMPLATE_LEN]);
    let setup = Setup {
        template,
        frame_len: i32::try_from(load.frame.len())?,
        flow_mask: load.flows - 1,
        next: 0,
        ipv6: u32::from(load.ipv6),
        grow: load.grow,
        verdict: load.verdict,
    };
    let mut map = Array::try_from(driver.map_mut("SETUP").context("no SETUP")?)?;
    map.set(0, setup, 0)?;
    let program: &Xdp = driver
        .program("weir_bench")
        .context("no driver")?
        .try_into()?;
    let result = program.test_run(TestRunOptions {
        data_in: Some(load.frame),
        repeat: packets,
        ..TestRunOptions::default()
    })?;
    ensure!(
        result.return_value == load.verdict,
        "the verdict is {}, expected {}",
        result.return_value,
        load.verdict
    );
    Ok(nanoseconds(result.duration))
}

/// The kernel says the time of one round on average, in whole nanoseconds.
fn nanoseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}
