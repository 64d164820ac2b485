//! The filesystem operations of [`RealDisk`].

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::super::boot::read_boot;
use super::super::{Disk, FileKind, FileMeta, is_unsupported};
use super::file::RealFile;
use super::os;
use super::resolve::ParentDir;
use super::root::RealDisk;
use crate::path::PRIVATE_DIR;

impl RealDisk {
    /// [`Disk::rename_new`] for a filesystem without exclusive renames.
    pub(super) fn rename_new_by_link(&self, from: (&ParentDir, &str), to: (&ParentDir, &str)) -> io::Result<()> {
        let is_dir = os::meta(&rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?).kind == FileKind::Dir;
        if is_dir {
            // A folder cannot have a second link. A plain rename could replace an empty folder at most.
            return match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST.into()),
                Err(Errno::NOENT) => Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?),
                Err(e) => Err(e.into()),
            };
        }
        // A crash in between leaves one file with two names. The scan sees two files.
        rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty())?;
        Ok(rustix::fs::unlinkat(from.0, from.1, AtFlags::empty())?)
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn boot_id(&self) -> Option<String> {
        read_boot().ok().map(|boot| boot.id)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<(OsString, FileMeta)>> {
        let fd = self.open_dir(dir)?;
        let mut found = Vec::new();
        os::each_name(&fd, |name: &CStr| {
            if matches!(name.to_bytes(), b"." | b"..") {
                return Ok(());
            }
            match os::meta_at(fd.as_fd(), name) {
                Ok(meta) => found.push((OsStr::from_bytes(name.to_bytes()).to_owned(), meta)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn stat(&self, path: &str) -> io::Result<FileMeta> {
        if path.is_empty() {
            return Ok(os::meta(&rustix::fs::fstat(&self.root)?));
        }
        let (parent, name) = self.parent(path)?;
        Ok(os::meta_at(parent.as_fd(), name)?)
    }

    fn open(&self, path: &str) -> io::Result<RealFile> {
        self.open_file(path, OFlags::RDONLY, Mode::empty())
    }

    fn create(&self, path: &str) -> io::Result<RealFile> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
        Ok(RealFile::from(self.open_at(path, flags, mode)?))
    }

    fn append(&self, path: &str) -> io::Result<RealFile> {
        self.open_file(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, Mode::RUSR | Mode::WUSR)
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        let (parent, name) = self.parent(dir)?;
        // The private folder holds the content of files. Only its owner may read it.
        let mode = if dir == PRIVATE_DIR { Mode::RWXU } else { Mode::RWXU | Mode::RWXG | Mode::RWXO };
        Ok(rustix::fs::mkdirat(parent, name, mode)?)
    }

    fn rmdir(&self, dir: &str) -> io::Result<()> {
        let (parent, name) = self.parent(dir)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        Ok(rustix::fs::renameat(from_dir, from_name, to_dir, to_name)?)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        match rustix::fs::renameat_with(&from_dir, from_name, &to_dir, to_name, RenameFlags::NOREPLACE) {
            Err(e) if is_unsupported(e) => self.rename_new_by_link((&from_dir, from_name), (&to_dir, to_name)),
            other => Ok(other?),
        }
    }

    fn exchange(&self, a: &str, b: &str) -> io::Result<()> {
        let (a_dir, a_name) = self.parent(a)?;
        let (b_dir, b_name) = self.parent(b)?;
        match rustix::fs::renameat_with(a_dir, a_name, b_dir, b_name, RenameFlags::EXCHANGE) {
            Err(e) if is_unsupported(e) => Err(io::Error::new(io::ErrorKind::Unsupported, io::Error::from(e))),
            other => Ok(other?),
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        Ok(os::sync(self.open_dir(dir)?.as_fd())?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(os::sync_all(self.open_dir("")?.as_fd())?)
    }
}
