//! A user land for a booted kernel: busybox, one test program, and what it calls.
//!
//! The archive is cpio's "newc" format, uncompressed: a header of hexadecimal numbers, the name, the contents, each
//! filled up to four bytes (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::output;

/// An archive that grows.
#[derive(Debug, Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<PathBuf>,
}

const FILE: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

impl Initramfs {
    pub(super) fn file(&mut self, path: &str, contents: &[u8]) {
        self.parents(Path::new(path));
        self.entry(path, FILE, contents);
    }

    pub(super) fn directory(&mut self, path: &str) {
        self.parents(Path::new(path));
        if self.directories.insert(PathBuf::from(path)) {
            self.entry(path, DIRECTORY, &[]);
        }
    }

    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.parents(Path::new(path));
        self.entry(path, LINK, to.as_bytes());
    }

    /// A program of this machine, at `path`, with the shared libraries that it names.
    pub(super) fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        let contents =
            fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        self.file(path, &contents);
        let libraries = output(Command::new("ldd").arg(program)).unwrap_or_default();
        for library in libraries.lines().filter_map(library) {
            let inside = library.trim_start_matches('/');
            if self.directories.insert(PathBuf::from(inside)) {
                let contents =
                    fs::read(library).with_context(|| format!("cannot read {library}"))?;
                self.file(inside, &contents);
            }
        }
        Ok(())
    }

    /// Closes the archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parents(&mut self, path: &Path) {
        let parents: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_path_buf).collect();
        for parent in parents
            .into_iter()
            .rev()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            if self.directories.insert(parent.clone()) {
                self.entry(&parent.to_string_lossy(), DIRECTORY, &[]);
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let links = 1;
        let (size, name_size) = (contents.len(), name.len() + 1);
        // Number, mode, user, group, links, time, size, two devices of two numbers each, length of the name, checksum.
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.entries, 0, 0, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.fill();
        self.bytes.extend_from_slice(contents);
        self.fill();
    }

    fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The file in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld-linux.so.2 (0x…)`.
fn library(line: &str) -> Option<&str> {
    let path = line.split("=>").last()?.trim().split(" (").next()?;
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tgone.so => not found\n";
        assert_eq!(
            text.lines().filter_map(library).collect::<Vec<_>>(),
            ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
    }

    #[test]
    fn an_entry_is_aligned_and_its_directories_come_first() {
        let mut archive = Initramfs::default();
        archive.file("bin/sh", b"12345");
        archive.link("bin/ls", "sh");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(name);
        assert!(
            at("bin\0") < at("bin/sh\0")
                && at("bin/sh\0") < at("bin/ls\0")
                && at("bin/ls\0") < at("TRAILER!!!")
        );
        assert_eq!(text.matches("bin\0").count(), 1);
        // 6 characters of magic and 13 numbers of 8: then the name at byte 110.
        assert_eq!(&bytes[110..114], b"bin\0");
        assert_eq!(&bytes[54..62], b"00000000");
    }
}
