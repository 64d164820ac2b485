//! The built-in patterns: leftovers of editors, downloads and systems.

macro_rules! hex {
    (4) => {
        "[0-9a-f][0-9a-f][0-9a-f][0-9a-f]"
    };
    (8) => {
        concat!(hex!(4), hex!(4))
    };
    (32) => {
        concat!(hex!(8), hex!(8), hex!(8), hex!(8))
    };
}

/// Temporary files of programs. These patterns apply to files only: a folder with such a name holds a user's work.
///
/// Names that a user might choose are missing here, because a note that is silently not synced would be worse: vim's write
/// probe (`4913`), `sed -i` (`sedXXXXXX`), rsync and QSaveFile (`name.XXXXXX`), Helix (`nameXXXXXX.bck`), nano
/// (`name.save`). Most of these files are gone before the scan.
const FILES: &[&str] = &[
    // vim: swap files. Backups of vim, emacs, nano, gedit, kate.
    ".*.sw[a-p]",
    ".sw[a-p]",
    "*~",
    // emacs: auto-save, lock (a dangling symlink).
    "#*#",
    ".#*",
    // JetBrains' safe write.
    "*___jb_tmp___",
    "*___jb_old___",
    "*___jb_bak___",
    // LibreOffice: lock file, new content before the rename.
    ".~lock.*#",
    "lu[0-9]*.tmp",
    // Microsoft Office: owner file, new content before the rename.
    "~$*",
    "~*.tmp",
    // kate, every program that saves through GLib (gedit), Sublime Text, Cocoa's safe save (TextEdit, Xcode).
    ".*.kate-swp",
    ".goutputstream-*",
    ".subl*.tmp",
    "*.sb-????????-??????",
    ".dat.nosync*",
    // Browsers and download programs.
    "*.part",
    "*.crdownload",
    // NFS and FUSE: a file removed while it was open.
    ".nfs[0-9a-f]*",
    ".fuse_hidden*",
    // macOS.
    ".DS_Store",
    "._*",
    ".localized",
    "Icon[\r]",
    // Windows.
    "Thumbs.db",
    "thumbs.db",
    "ehthumbs.db",
    "[Dd]esktop.ini",
    // Syncthing's temporary files.
    ".syncthing.*.tmp",
    // Programs that write a new file and rename it: `.tmp-<pid>-<uuid>`, `name.<32 hex>.tmp`.
    concat!(".tmp-[0-9]*-", hex!(8), "-", hex!(4), "-", hex!(4), "-", hex!(4), "-", hex!(8), hex!(4)),
    concat!("*.", hex!(32), ".tmp"),
];

/// Folders that systems create at the top of a volume.
const FOLDERS: &[&str] = &[
    "/.Trash-[0-9]*/",
    "/.Trashes/",
    "/.Spotlight-V100/",
    "/.fseventsd/",
    "/.TemporaryItems/",
    "/.DocumentRevisions-V100/",
    "/$RECYCLE.BIN/",
    "/System Volume Information/",
    "/lost+found/",
];

/// The built-in patterns, in gitignore syntax.
pub fn built_in_patterns() -> impl Iterator<Item = &'static str> {
    FILES.iter().chain(FOLDERS).copied()
}
