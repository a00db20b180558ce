//! Writes an initramfs: the "newc" cpio format of Documentation/driver-api/early-userspace/buffer-format.rst.
//!
//! ```text
//! 070701 | 13 fields of 8 hexadecimal digits | name NUL | pad to 4 | data | pad to 4
//! ```
//! Written here because the kernel wants parents before children and nothing else: no tool is needed for that.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive that is being written.
pub struct Archive<W> {
    out: W,
    /// Paths that are in it.
    names: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty one.
    pub fn new(out: W) -> Self {
        Self { out, names: BTreeSet::new() }
    }

    /// Adds an executable file at the absolute path `at`, its folders first. A path that is there already stays.
    ///
    /// # Errors
    /// When it cannot be written, or is larger than the format can say (4 GiB).
    pub fn program(&mut self, at: &str, data: &[u8]) -> io::Result<()> {
        self.put(at, PROGRAM, data)
    }

    /// Adds a symbolic link, as [`Archive::program`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn link(&mut self, at: &str, to: &str) -> io::Result<()> {
        self.put(at, LINK, to.as_bytes())
    }

    /// Adds an empty folder, as [`Archive::program`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn folder(&mut self, at: &str) -> io::Result<()> {
        self.put(at, FOLDER, &[])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn put(&mut self, at: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let name = at.trim_start_matches('/');
        let parents: Vec<_> = Path::new(name).ancestors().skip(1).filter_map(Path::to_str).collect();
        for parent in parents.into_iter().rev().filter(|parent| !parent.is_empty()) {
            if self.names.insert(parent.to_owned()) {
                self.entry(parent, FOLDER, &[])?;
            }
        }
        if self.names.insert(name.to_owned()) { self.entry(name, mode, data) } else { Ok(()) }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let size = |len: usize| u32::try_from(len).map_err(io::Error::other);
        let inode = size(self.names.len())?;
        // Inode, mode, owner, group, links, time, size, device of the file and of the node, length of the name, sum.
        let fields = [inode, mode, 0, 0, 1, 0, size(data.len())?, 0, 0, 0, 0, size(name.len() + 1)?, 0];
        let mut head = String::from("070701");
        for field in fields {
            head.push_str(&format!("{field:08X}"));
        }
        head.push_str(name);
        head.push('\0');
        self.out.write_all(head.as_bytes())?;
        self.pad(head.len())?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, len: usize) -> io::Result<()> {
        let zeros = len.next_multiple_of(4) - len;
        self.out.write_all(&vec![0; zeros])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once_and_everything_lies_on_a_multiple_of_four() {
        let mut archive = Archive::new(Vec::new());
        archive.program("/usr/bin/a", b"12345").unwrap();
        archive.program("/usr/bin/b", b"").unwrap();
        archive.program("/usr/bin/a", b"again").unwrap();
        archive.link("/init", "usr/bin/a").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(names(&bytes), ["usr", "usr/bin", "usr/bin/a", "usr/bin/b", "init", "TRAILER!!!"]);
        assert!(!bytes.windows(5).any(|window| window == b"again"));
    }

    /// Reads the archive back by its lengths.
    fn names(mut rest: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        while !rest.is_empty() {
            let (head, _) = rest.split_at(110);
            let text = std::str::from_utf8(head).unwrap();
            assert!(text.starts_with("070701"), "{text}");
            let field = |index: usize| usize::from_str_radix(&text[6 + 8 * index..14 + 8 * index], 16).unwrap();
            let (data, name) = (field(6), field(11));
            names.push(String::from_utf8(rest[110..110 + name - 1].to_vec()).unwrap());
            rest = &rest[(110 + name).next_multiple_of(4) + data.next_multiple_of(4)..];
        }
        names
    }
}
