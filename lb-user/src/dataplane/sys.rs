//! The `bpf(2)` commands that aya has no call for.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `struct bpf_link_info` of an XDP link, as far as it is read.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct XdpLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    ifindex: u32,
    _rest: [u32; 11],
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GetInfo {
    fd: u32,
    len: u32,
    info: u64,
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// Returns the interface that an XDP link is on; 0 if that interface is gone.
pub fn xdp_link_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = XdpLinkInfo::default();
    let mut attr = GetInfo {
        fd: link.as_raw_fd() as u32,
        len: size_of::<XdpLinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attribute names a buffer of ours and its length; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw mut attr,
            size_of::<GetInfo>(),
        )
    };
    match result {
        0 => Ok(info.ifindex),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `union bpf_attr` for `BPF_LINK_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GetFdById {
    id: u32,
    _next_id: u32,
    open_flags: u32,
}

const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;

/// Opens a link by its id.
pub fn link_fd_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = GetFdById {
        id,
        _next_id: 0,
        open_flags: 0,
    };
    // SAFETY: the attribute outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_GET_FD_BY_ID,
            &raw mut attr,
            size_of::<GetFdById>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
