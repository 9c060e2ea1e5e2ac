//! Running the loaded programs on crafted frames.

use std::io;

use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};

/// `struct xdp_md` as `BPF_PROG_TEST_RUN` takes it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// The most that a frame grows by.
const HEADROOM: usize = 256;

/// Runs an XDP program once on `frame`, as if it came in by `ingress_ifindex` (0: by the loopback
/// interface). Returns the verdict and the frame as the program left it.
pub fn test_run(
    program: &Xdp,
    frame: &[u8],
    ingress_ifindex: u32,
) -> Result<(u32, Vec<u8>), io::Error> {
    let ctx = XdpMd {
        data: 0,
        data_end: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_meta: 0,
        ingress_ifindex,
        rx_queue_index: 0,
        egress_ifindex: 0,
    };
    let mut out = vec![0; frame.len() + HEADROOM];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (ingress_ifindex != 0).then(|| bytemuck::bytes_of(&ctx)),
            ..TestRunOptions::default()
        })
        .map_err(|error| {
            let ProgramError::SyscallError(error) = error else {
                return io::Error::other(error);
            };
            let error = error.io_error;
            if ingress_ifindex != 0 && error.raw_os_error() == Some(libc::EINVAL) {
                return io::Error::other(
                    "the kernel refuses a test run with a context: Linux 5.14 has them (47316f4a3053)",
                );
            }
            error
        })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// Binds the thread to the CPU that it runs on, until dropped.
pub struct PinnedToCpu(nix::sched::CpuSet);

impl PinnedToCpu {
    /// Binds the thread.
    pub fn new() -> io::Result<Self> {
        let this = nix::unistd::Pid::from_raw(0);
        let before = nix::sched::sched_getaffinity(this)?;
        let mut one = nix::sched::CpuSet::new();
        one.set(nix::sched::sched_getcpu()?)?;
        nix::sched::sched_setaffinity(this, &one)?;
        Ok(Self(before))
    }
}

impl Drop for PinnedToCpu {
    fn drop(&mut self) {
        let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &self.0);
    }
}
