//! A BPF array map in the daemon's own memory: stores without system calls.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A memory-mapped `Array` map with `BPF_F_MMAPABLE`, seen as 64-bit words.
pub struct Mapped {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is the kernel's and stays where it is; words are only accessed atomically.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps `words` 64-bit words of the map's values.
    pub fn new(map: impl AsFd, words: usize) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(words * 8)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the map is empty"))?;
        // SAFETY: a new mapping at an address of the kernel's choice, of a map that is at least
        // this long (the kernel refuses a longer mapping).
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            words,
        })
    }

    /// Returns the word at `index`, or nothing behind the end.
    pub fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: within the mapping, whose start is page-aligned.
        Some(unsafe { self.start.add(index).as_ref() })
    }

    /// Copies words out. Returns nothing if they are not all there.
    pub fn read(&self, index: usize, into: &mut [u64]) -> Option<()> {
        for (offset, word) in into.iter_mut().enumerate() {
            *word = self.word(index + offset)?.load(Ordering::Relaxed);
        }
        Some(())
    }

    /// Copies words in. Returns nothing, having stored those before the end, if there is no room.
    pub fn write(&self, index: usize, from: &[u64]) -> Option<()> {
        for (offset, word) in from.iter().enumerate() {
            self.word(index + offset)?.store(*word, Ordering::Relaxed);
        }
        Some(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nobody holds a reference into it any more.
        let _ = unsafe { munmap(self.start.cast(), self.words * 8) };
    }
}
