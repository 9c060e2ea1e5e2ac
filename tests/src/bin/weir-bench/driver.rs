use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::bench::{Setup, TEMPLATE_LEN};
use nix::time::{ClockId, clock_gettime};

/// The most that a frame grows by.
const HEADROOM: usize = 256;

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
    /// What the program answers.
    pub verdict: u32,
}

impl Driver {
    /// Makes a driver of `program`, with a stub that grows frames by `grow` bytes and answers
    /// `verdict`.
    pub fn new(program: &ProgramFd, grow: i32, verdict: u32) -> Result<Self> {
        let mut measured = load(&mut EbpfLoader::new())?;
        install(&mut measured, program)?;
        let mut stub = load(
            EbpfLoader::new()
                .override_global("STUB_GROW", &grow, true)
                .override_global("STUB_VERDICT", &verdict, true),
        )?;
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

    /// Sends `packets` packets to the program under test. Returns the time of one in nanoseconds.
    pub fn run(&mut self, load: &Load<'_>, packets: u32) -> Result<f64> {
        Ok(run(&mut self.measured, load, packets, None)?.0)
    }

    /// Does as much with the stub.
    pub fn run_stub(&mut self, load: &Load<'_>, packets: u32) -> Result<f64> {
        Ok(run(&mut self.stub, load, packets, None)?.0)
    }

    /// Sends the packet of flow 0 to the program under test. Returns the frame as it is then.
    pub fn frame(&mut self, load: &Load<'_>) -> Result<Vec<u8>> {
        let mut out = vec![0; load.frame.len() + HEADROOM];
        let (_, result) = run(&mut self.measured, load, 1, Some(&mut out))?;
        out.truncate(result.data_size_out as usize);
        Ok(out)
    }
}

fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf> {
    let mut ebpf = loader.load(lb_user::dataplane::BENCH_OBJECT)?;
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

/// Sends packets. Returns the time of one in nanoseconds, and what the kernel says of the last.
///
/// The time is the CPU time of this thread. The kernel reports the time of a packet as well, but in
/// whole nanoseconds. CPU time leaves out, as the kernel's figure does, when others had the CPU,
/// which the wall clock would count. What it counts in addition is the system call around the
/// packets: microseconds in a million packets, and as much with the stub.
fn run(
    driver: &mut Ebpf,
    load: &Load<'_>,
    packets: u32,
    out: Option<&mut [u8]>,
) -> Result<(f64, TestRunResult)> {
    let mut template = [0; TEMPLATE_LEN / 8];
    let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut template);
    bytes.copy_from_slice(&load.frame[..TEMPLATE_LEN]);
    let setup = Setup {
        template,
        frame_len: i32::try_from(load.frame.len())?,
        flow_mask: load.flows - 1,
        next: 0,
        ipv6: u32::from(load.ipv6),
    };
    let mut map = Array::try_from(driver.map_mut("SETUP").context("no SETUP")?)?;
    map.set(0, setup, 0)?;
    let program: &Xdp = driver
        .program("weir_bench")
        .context("no driver")?
        .try_into()?;
    let cpu_time = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let before = cpu_time()?;
    let result = program.test_run(TestRunOptions {
        data_in: Some(load.frame),
        data_out: out,
        repeat: packets,
        ..TestRunOptions::default()
    })?;
    let time = cpu_time()?.saturating_sub(before);
    ensure!(
        result.return_value == load.verdict,
        "the verdict is {}, expected {}",
        result.return_value,
        load.verdict
    );
    Ok((time.as_secs_f64() * 1e9 / f64::from(packets), result))
}
