//! Content codings (capability `encoding`): zstd and gzip, piece by piece, with bounded memory.
//!
//! Callers negotiate the coding and limit the length of the content. An MD5 is always that of the plain content.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use zstd_safe::zstd_sys::{ZSTD_EndDirective as Directive, ZSTD_ErrorCode as Code};
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

/// Shorter contents, in bytes, are not compressed, because they fit into one packet anyway.
pub const MIN_SIZE: u64 = 1024;
/// Largest window of a zstd frame, in bytes (RFC 9659).
pub const MAX_WINDOW: u64 = 8 * 1024 * 1024;
/// Most bytes of a compressed content that [`window`] reads.
pub const MAX_HEAD: usize = 18;
/// The window of our own zstd frames: log2 of its bytes.
const WINDOW_LOG: u32 = 20;
/// The window of gzip: log2 of its bytes. The format has only this one.
const GZIP_WINDOW_LOG: u8 = 15;
/// The compression level of zstd, which is its default.
const ZSTD_LEVEL: i32 = 3;
/// The compression level of gzip. It is low, because a client without zstd is rare.
const GZIP_LEVEL: u32 = 4;
/// Most bytes that one step produces.
const PIECE: usize = 64 * 1024;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Zstd,
    Gzip,
}

impl Coding {
    /// In order of preference.
    pub const ALL: [Self; 2] = [Self::Zstd, Self::Gzip];

    /// The name in `Content-Encoding` and `Accept-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// The coding of that name, in any letter case. `x-gzip` is an old name of gzip (RFC 9110, section 8.4.1.3).
    pub fn of(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("x-gzip") {
            return Some(Self::Gzip);
        }
        Self::ALL.into_iter().find(|coding| name.eq_ignore_ascii_case(coding.name()))
    }

    /// Compresses `content`. `None`: compression does not pay.
    pub fn pack(self, content: &[u8]) -> Result<Option<Bytes>, CodingError> {
        if (content.len() as u64) < MIN_SIZE {
            return Ok(None);
        }
        let mut encoder = Encoder::new(self, Some(content.len() as u64))?;
        let packed = encoder.finish(content)?;
        Ok(is_worth_it(content.len(), packed.len()).then_some(packed))
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// True if compression saves at least an eighth. The result decides, not the file's name: compressed, encrypted and image
/// files do not shrink.
pub fn is_worth_it(plain: usize, packed: usize) -> bool {
    packed <= plain - plain / 8
}

/// A failure to compress or decompress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodingError {
    #[error("it is not {0}, or was damaged on the way")]
    Corrupt(Coding),
    #[error("it breaks off before the end that {0} has")]
    CutOff(Coding),
    #[error("something follows after the end that gzip has")]
    Trailing,
    #[error("a frame of zstd asks for a window beyond {} MiB, or beyond that of the first", MAX_WINDOW >> 20)]
    Window,
    /// The library failed. The content may be fine.
    #[error("{0} failed: {1}")]
    Failed(Coding, &'static str),
}

/// The window that decompression needs, in bytes. `head`: the first [`MAX_HEAD`] bytes of the content, or all of it.
///
/// A window beyond [`MAX_WINDOW`] is the error `Window`. Content in another coding gets 0, and fails in the decoder.
pub fn window(coding: Coding, head: &[u8]) -> Result<u64, CodingError> {
    if coding == Coding::Gzip {
        return Ok(1 << GZIP_WINDOW_LOG);
    }
    let window = zstd_window(head).unwrap_or(0);
    if window > MAX_WINDOW { Err(CodingError::Window) } else { Ok(window) }
}

/// RFC 8878, section 3.1.1.1.
fn zstd_window(head: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = head else { return None };
    if descriptor & 0x20 == 0 {
        let window = *rest.first()?;
        let base = 1 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment: the window is the whole content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let size = rest.get(dictionary..dictionary + length)?;
    let size = size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    Some(if length == 2 { size + 256 } else { size })
}

/// Decompresses a content piece by piece. It holds one piece and the window.
pub struct Decoder {
    library: DecoderLibrary,
    piece: Box<[u8]>,
    /// The library may produce more without more input.
    has_more: bool,
    /// The input so far ends with the end of a frame.
    has_ended: bool,
}

enum DecoderLibrary {
    Zstd(DCtx<'static>),
    Gzip(Decompress),
}

impl Decoder {
    /// `window`: the largest window that it accepts, in bytes.
    pub fn new(coding: Coding, window: u64) -> Result<Self, CodingError> {
        let library = match coding {
            Coding::Zstd => {
                let mut context = DCtx::try_create().ok_or(CodingError::Failed(coding, "no memory"))?;
                // The least that zstd accepts is 1 KiB.
                let log = window.clamp(1024, MAX_WINDOW).next_power_of_two().ilog2();
                context.set_parameter(DParameter::WindowLogMax(log)).map_err(failed)?;
                DecoderLibrary::Zstd(context)
            }
            Coding::Gzip => DecoderLibrary::Gzip(Decompress::new_gzip(GZIP_WINDOW_LOG)),
        };
        Ok(Self { library, piece: vec![0; PIECE].into(), has_more: false, has_ended: false })
    }

    /// The coding that it decompresses.
    pub fn coding(&self) -> Coding {
        match self.library {
            DecoderLibrary::Zstd(_) => Coding::Zstd,
            DecoderLibrary::Gzip(_) => Coding::Gzip,
        }
    }

    /// Consumes bytes from `packed` and returns the next plain piece. `None`: `packed` is empty and the decoder needs more.
    ///
    /// The decoder cannot be used after an error.
    pub fn decode(&mut self, packed: &mut Bytes) -> Result<Option<Bytes>, CodingError> {
        loop {
            if packed.is_empty() && !self.has_more {
                return Ok(None);
            }
            if self.has_ended && matches!(self.library, DecoderLibrary::Gzip(_)) {
                return Err(CodingError::Trailing);
            }
            let (read, written, ended) = match &mut self.library {
                DecoderLibrary::Zstd(context) => {
                    let mut input = InBuffer::around(packed);
                    let mut output = OutBuffer::around(&mut *self.piece);
                    let wanted = context.decompress_stream(&mut output, &mut input).map_err(unreadable)?;
                    let written = output.pos();
                    (input.pos(), written, wanted == 0)
                }
                DecoderLibrary::Gzip(context) => {
                    let (read, written) = (context.total_in(), context.total_out());
                    let status = context
                        .decompress(packed, &mut self.piece, FlushDecompress::None)
                        .map_err(|_| CodingError::Corrupt(Coding::Gzip))?;
                    let length = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                    let (read, written) = (context.total_in() - read, context.total_out() - written);
                    (length(read), length(written), status == Status::StreamEnd)
                }
            };
            packed.advance(read);
            self.has_ended = ended;
            self.has_more = written == self.piece.len() && !ended;
            if written > 0 {
                return Ok(Some(Bytes::copy_from_slice(&self.piece[..written])));
            }
            if read == 0 && !packed.is_empty() {
                return Err(CodingError::Corrupt(self.coding()));
            }
        }
    }

    /// Checks that the content has ended; else it is `CutOff`.
    pub fn finish(&self) -> Result<(), CodingError> {
        if self.has_ended { Ok(()) } else { Err(CodingError::CutOff(self.coding())) }
    }
}

/// Compresses a content piece by piece. It holds a few MiB (zstd) or 256 KiB (gzip).
pub struct Encoder(EncoderLibrary);

enum EncoderLibrary {
    Zstd(CCtx<'static>),
    Gzip(Compress),
}

/// How much of the compressed output one step returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlushMode {
    /// The bytes that are ready.
    Ready,
    /// All bytes for the input so far.
    Sync,
    /// All bytes, with the end of the content.
    End,
}

impl Encoder {
    /// `size`: the exact length of the content, where it is known. A small content then needs less memory on both sides.
    pub fn new(coding: Coding, size: Option<u64>) -> Result<Self, CodingError> {
        Ok(Self(match coding {
            Coding::Zstd => {
                let mut context = CCtx::try_create().ok_or(CodingError::Failed(coding, "no memory"))?;
                context.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL)).map_err(failed)?;
                context.set_parameter(CParameter::WindowLog(WINDOW_LOG)).map_err(failed)?;
                context.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
                context.set_pledged_src_size(size).map_err(failed)?;
                EncoderLibrary::Zstd(context)
            }
            Coding::Gzip => EncoderLibrary::Gzip(Compress::new_gzip(Compression::new(GZIP_LEVEL), GZIP_WINDOW_LOG)),
        }))
    }

    /// Compresses the next piece. Returns the bytes that are ready, possibly an empty slice.
    pub fn encode(&mut self, piece: &[u8]) -> Result<Bytes, CodingError> {
        self.run(piece, FlushMode::Ready)
    }

    /// As [`Encoder::encode`], but returns all bytes for the pieces so far.
    pub fn flush(&mut self, piece: &[u8]) -> Result<Bytes, CodingError> {
        self.run(piece, FlushMode::Sync)
    }

    /// Compresses the last piece and ends the content.
    pub fn finish(&mut self, piece: &[u8]) -> Result<Bytes, CodingError> {
        self.run(piece, FlushMode::End)
    }

    fn run(&mut self, mut piece: &[u8], mode: FlushMode) -> Result<Bytes, CodingError> {
        let mut out = BytesMut::new();
        // The output usually fits into this.
        let mut room = vec![0; (piece.len() / 2 + 512).min(PIECE)];
        loop {
            let (read, written, done) = match &mut self.0 {
                EncoderLibrary::Zstd(context) => {
                    let directive = match mode {
                        FlushMode::Ready => Directive::ZSTD_e_continue,
                        FlushMode::Sync => Directive::ZSTD_e_flush,
                        FlushMode::End => Directive::ZSTD_e_end,
                    };
                    let mut input = InBuffer::around(piece);
                    let mut output = OutBuffer::around(room.as_mut_slice());
                    let left = context.compress_stream2(&mut output, &mut input, directive).map_err(failed)?;
                    let read = input.pos();
                    let done = read == piece.len() && (mode == FlushMode::Ready || left == 0);
                    (read, output.pos(), done)
                }
                EncoderLibrary::Gzip(context) => {
                    let flush = match mode {
                        FlushMode::Ready => FlushCompress::None,
                        FlushMode::Sync => FlushCompress::Sync,
                        FlushMode::End => FlushCompress::Finish,
                    };
                    let (read, written) = (context.total_in(), context.total_out());
                    let status = context
                        .compress(piece, &mut room, flush)
                        .map_err(|_| CodingError::Failed(Coding::Gzip, "out of order"))?;
                    let length = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                    let (read, written) = (length(context.total_in() - read), length(context.total_out() - written));
                    let done = match mode {
                        FlushMode::End => status == Status::StreamEnd,
                        FlushMode::Ready | FlushMode::Sync => read == piece.len() && written < room.len(),
                    };
                    (read, written, done)
                }
            };
            out.extend_from_slice(&room[..written]);
            piece = &piece[read..];
            if done {
                return Ok(out.freeze());
            }
        }
    }
}

/// A fault of the library.
fn failed(code: usize) -> CodingError {
    CodingError::Failed(Coding::Zstd, zstd_safe::get_error_name(code))
}

/// A fault of the content, or of the library.
fn unreadable(code: usize) -> CodingError {
    // The error codes are the negated numbers of this enum, which belongs to the stable interface of zstd.
    let is = |kind: Code| code == 0_usize.wrapping_sub(kind as usize);
    if is(Code::ZSTD_error_frameParameter_windowTooLarge) {
        CodingError::Window
    } else if is(Code::ZSTD_error_memory_allocation) {
        failed(code)
    } else {
        CodingError::Corrupt(Coding::Zstd)
    }
}

#[cfg(test)]
mod tests;
