//! The `bpf(2)` commands that aya has no call for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

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

/// `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

const BPF_OBJ_GET: libc::c_int = 7;

/// Opens what is pinned at `path`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the attribute names a string of ours; both outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET,
            &raw const attr,
            size_of::<ObjGet>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LinkDetach {
    fd: u32,
}

const BPF_LINK_DETACH: libc::c_int = 34;

/// Takes a link's program off its interface, whoever holds the link (Linux 5.9, 73b11c2ab072).
/// Closing the last descriptor does so too, but some time later.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkDetach {
        fd: link.as_raw_fd() as u32,
    };
    // SAFETY: the attribute outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_DETACH,
            &raw const attr,
            size_of::<LinkDetach>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `union bpf_attr` for `BPF_MAP_CREATE`, as far as it is set.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CreateMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

const BPF_MAP_CREATE: libc::c_int = 0;
/// `BPF_MAP_TYPE_HASH`.
pub const HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
pub const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_LPM_TRIE`.
const LPM_TRIE: u32 = 11;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
pub const MMAPABLE: u32 = 1 << 10;

/// Makes a map of one entry with keys of four bytes.
pub fn create_map(kind: u32, value_size: u32, flags: u32) -> io::Result<OwnedFd> {
    create(&CreateMap {
        kind,
        key_size: 4,
        value_size,
        max_entries: 1,
        flags,
    })
}

/// Makes a trie for one prefix of up to 32 bits, with a word as its value.
pub fn create_trie() -> io::Result<OwnedFd> {
    create(&CreateMap {
        kind: LPM_TRIE,
        key_size: 8,
        value_size: 4,
        max_entries: 1,
        flags: NO_PREALLOC,
    })
}

fn create(attr: &CreateMap) -> io::Result<OwnedFd> {
    // SAFETY: the attribute outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_CREATE,
            std::ptr::from_ref(attr),
            size_of::<CreateMap>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH` and its kin.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

/// Reads the next entries of a map. `position` is where the last call stopped, and is set to where this one
/// did; nothing is the start. As many entries as fit into `keys` and `values` are read. Returns how many,
/// and whether there may be more.
///
/// What a position is depends on the map. In a hash map (Linux 5.6, 057996380a42) it is a `u32`, and whole
/// buckets are read: unlike a walk from key to key it can't start again when the program deletes the
/// entry it stands on. A bucket that doesn't fit gives `ENOSPC`. In a prefix trie (Linux 5.13) it is the
/// last key that was read.
pub fn lookup_batch<P: bytemuck::Pod, K: bytemuck::Pod, V: bytemuck::Pod>(
    map: BorrowedFd<'_>,
    position: &mut Option<P>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    let mut next = P::zeroed();
    let mut attr = Batch {
        in_batch: position
            .as_ref()
            .map_or(0, |at| std::ptr::from_ref(at) as u64),
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len().min(values.len()) as u32,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    let result = batch(BPF_MAP_LOOKUP_BATCH, &mut attr);
    let more = match result {
        Ok(()) => true,
        // The end of the map, with what was left of it.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    *position = Some(next);
    Ok((attr.count as usize, more))
}

/// Stores entries, one after the other.
pub fn update_batch<K: bytemuck::Pod, V: bytemuck::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len().min(values.len()) as u32,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    batch(BPF_MAP_UPDATE_BATCH, &mut attr)
}

/// Deletes entries; some may be gone already.
pub fn delete_batch<K: bytemuck::Pod>(map: BorrowedFd<'_>, mut keys: &[K]) -> io::Result<()> {
    while !keys.is_empty() {
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: 0,
            count: keys.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        match batch(BPF_MAP_DELETE_BATCH, &mut attr) {
            Ok(()) => return Ok(()),
            // The kernel stops at the first that isn't there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let done = attr.count as usize + 1;
                keys = keys.get(done..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Runs a batch command; `attr.count` says how many entries the kernel went over.
fn batch(command: libc::c_int, attr: &mut Batch) -> io::Result<()> {
    // SAFETY: the attribute names buffers of the caller's with room for `count` entries of the
    // map's sizes, which outlive the call; any bytes are valid for their types.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<Batch>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
