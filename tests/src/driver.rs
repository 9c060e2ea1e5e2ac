//! The driver program: runs a program under test many times on frames that it restores and varies
//! itself, or on a frame with little room in front.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::bench::{Setup, TEMPLATE_LEN};
use nix::time::{ClockId, clock_gettime};

/// The most that a frame grows by.
const HEADROOM: usize = 256;

/// The driver, with a program under test.
#[derive(Debug)]
pub struct Driver(Ebpf);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The frame of flow 0: the last two bytes of its source address and its source port are zero.
    /// At least [`TEMPLATE_LEN`] bytes.
    pub frame: &'a [u8],
    /// How many flows it is varied over, a power of two.
    pub flows: u32,
    /// Whether it is an IPv6 frame.
    pub ipv6: bool,
    /// So many bytes of it the driver puts in front itself: they are gone from the room that the
    /// program under test has. Of those only the first [`TEMPLATE_LEN`] are the frame's.
    pub in_front: usize,
}

impl Driver {
    /// Makes a driver of `program`.
    pub fn new(program: &ProgramFd) -> Result<Self> {
        Self::with(load(&mut EbpfLoader::new())?, program)
    }

    /// Makes a driver of a program that grows frames by `grow` bytes, answers `verdict`, and does
    /// nothing else: what it takes is what the harness takes.
    pub fn of_stub(grow: i32, verdict: u32) -> Result<Self> {
        let mut ebpf = load(
            EbpfLoader::new()
                .override_global("STUB_GROW", &grow, true)
                .override_global("STUB_VERDICT", &verdict, true),
        )?;
        let stub = xdp(&mut ebpf, "weir_bench_stub")?;
        stub.load()?;
        let stub = stub.fd()?.try_clone()?;
        Self::with(ebpf, &stub)
    }

    fn with(mut ebpf: Ebpf, program: &ProgramFd) -> Result<Self> {
        let mut array = ProgramArray::try_from(ebpf.map_mut("PROGRAM").context("no PROGRAM")?)?;
        array.set(0, program, 0)?;
        Ok(Self(ebpf))
    }

    /// Sends `packets` packets, each of which must be answered by `verdict`. Returns the time of
    /// one in nanoseconds.
    pub fn time(&mut self, load: &Load<'_>, packets: u32, verdict: u32) -> Result<f64> {
        let (time, answer, _) = self.run(load, packets, None)?;
        ensure!(answer == verdict, "the verdict is {answer}, not {verdict}");
        Ok(time.as_secs_f64() * 1e9 / f64::from(packets))
    }

    /// Sends the packet of flow 0. Returns the verdict, and the frame as it is then.
    pub fn once(&mut self, load: &Load<'_>) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; load.frame.len() + HEADROOM];
        let (_, verdict, len) = self.run(load, 1, Some(&mut out))?;
        out.truncate(len);
        Ok((verdict, out))
    }

    /// Returns the time of all packets, the last verdict and the last frame's length.
    ///
    /// The time is the CPU time of this thread. The kernel reports the time of a packet as well, but
    /// in whole nanoseconds. CPU time leaves out, as the kernel's figure does, when others had the
    /// CPU, which the wall clock would count. What it counts in addition is the system call around
    /// the packets: microseconds in a million packets, and as much with the stub.
    fn run(
        &mut self,
        load: &Load<'_>,
        packets: u32,
        out: Option<&mut [u8]>,
    ) -> Result<(Duration, u32, usize)> {
        let mut template = [0; TEMPLATE_LEN / 8];
        let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut template);
        bytes.copy_from_slice(&load.frame[..TEMPLATE_LEN]);
        let setup = Setup {
            template,
            frame_len: i32::try_from(load.frame.len())?,
            flow_mask: load.flows - 1,
            next: 0,
            ipv6: u32::from(load.ipv6),
            port_v6: u16::from_ne_bytes([load.frame[TEMPLATE_LEN], load.frame[TEMPLATE_LEN + 1]]),
            _pad: [0; 6],
        };
        let mut map = Array::try_from(self.0.map_mut("SETUP").context("no SETUP")?)?;
        map.set(0, setup, 0)?;
        let driver = xdp(&mut self.0, "weir_bench")?;
        let cpu_time = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
        let before = cpu_time()?;
        let result = driver.test_run(TestRunOptions {
            data_in: Some(&load.frame[load.in_front..]),
            data_out: out,
            repeat: packets,
            ..TestRunOptions::default()
        })?;
        let time = cpu_time()?.saturating_sub(before);
        Ok((time, result.return_value, result.data_size_out as usize))
    }
}

fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf> {
    let mut ebpf = loader.load(lb_user::dataplane::BENCH_OBJECT)?;
    xdp(&mut ebpf, "weir_bench")?.load()?;
    Ok(ebpf)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).context(name)?.try_into()?)
}
