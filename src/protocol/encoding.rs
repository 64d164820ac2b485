//! Content codings (capability `encoding`): zstd and gzip, piece by piece, with bounded memory.
//!
//! This packs and unpacks; who asks for what, and how long a content may be, is its callers' business. An MD5 is
//! always that of the plain content.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use zstd_safe::zstd_sys::{ZSTD_EndDirective as Directive, ZSTD_ErrorCode as Code};
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

/// Shorter contents, bytes, travel as they are: one packet holds them, packed or not.
pub const MIN_SIZE: u64 = 1024;
/// What a frame of zstd may ask its reader to remember, bytes: as RFC 9659 bounds it for this coding.
pub const MAX_WINDOW: u64 = 8 * 1024 * 1024;
/// Bytes that the head of a content takes at most, as far as [`window`] reads it.
pub const MAX_HEAD: usize = 18;
/// What our own frames ask for, as a power of two, bytes.
const WINDOW_LOG: u32 = 20;
/// Window of gzip, as a power of two, bytes: all that the format has.
const GZIP_WINDOW_LOG: u8 = 15;
/// The level of zstd: its own default.
const ZSTD_LEVEL: i32 = 3;
/// The level of gzip: a client that asks for no better is not worth more time.
const GZIP_LEVEL: u32 = 4;
/// Bytes unpacked at once, at most.
const PIECE: usize = 64 * 1024;

/// A coding that both sides know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Zstd,
    Gzip,
}

impl Coding {
    /// The better one first.
    pub const ALL: [Self; 2] = [Self::Zstd, Self::Gzip];

    /// As it stands in `Content-Encoding` and `Accept-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// The coding of that name, in any case; `x-gzip` is an old one of gzip (RFC 9110, section 8.4.1.3).
    pub fn of(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("x-gzip") {
            return Some(Self::Gzip);
        }
        Self::ALL.into_iter().find(|coding| name.eq_ignore_ascii_case(coding.name()))
    }

    /// `content` packed; `None` where that is not worth it.
    ///
    /// # Errors
    /// [`CodingError::Failed`].
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

/// Whether packing saves at least an eighth. Contents tell that better than their names do: what is packed, encrypted
/// or a picture already does not get smaller.
pub fn is_worth_it(plain: usize, packed: usize) -> bool {
    packed <= plain - plain / 8
}

/// Why bytes could not be packed or unpacked.
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
    /// Not the content's fault.
    #[error("{0} failed: {1}")]
    Failed(Coding, &'static str),
}

/// How much of the plain content, bytes, whoever unpacks it has to remember; as the first [`MAX_HEAD`] bytes tell, or all
/// there are.
///
/// # Errors
/// `Window` beyond [`MAX_WINDOW`]. What is not of that coding gets the least, and fails as it is unpacked.
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
    // A single segment: all of the content is remembered.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let size = rest.get(dictionary..dictionary + length)?;
    let size = size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    Some(if length == 2 { size + 256 } else { size })
}

/// Unpacks what comes in pieces. It holds one piece, and the window that the content asks for within the bound.
pub struct Decoder {
    inner: Unpack,
    piece: Box<[u8]>,
    /// There may be more to give, without anything more to take.
    more: bool,
    /// All that was taken in ends where a frame does.
    ended: bool,
}

enum Unpack {
    Zstd(DCtx<'static>),
    Gzip(Decompress),
}

impl Decoder {
    /// `window`: the most that it may have to remember, bytes.
    ///
    /// # Errors
    /// [`CodingError::Failed`] when there is no memory.
    pub fn new(coding: Coding, window: u64) -> Result<Self, CodingError> {
        let inner = match coding {
            Coding::Zstd => {
                let mut context = DCtx::try_create().ok_or(CodingError::Failed(coding, "no memory"))?;
                // zstd takes no less than 1 KiB.
                let log = window.clamp(1024, MAX_WINDOW).next_power_of_two().ilog2();
                context.set_parameter(DParameter::WindowLogMax(log)).map_err(failed)?;
                Unpack::Zstd(context)
            }
            Coding::Gzip => Unpack::Gzip(Decompress::new_gzip(GZIP_WINDOW_LOG)),
        };
        Ok(Self { inner, piece: vec![0; PIECE].into(), more: false, ended: false })
    }

    /// Which one it unpacks.
    pub fn coding(&self) -> Coding {
        match self.inner {
            Unpack::Zstd(_) => Coding::Zstd,
            Unpack::Gzip(_) => Coding::Gzip,
        }
    }

    /// The next piece of the plain content; takes what it needs from `packed`, and gives `None` once that is empty and
    /// nothing more can be told without more of it.
    ///
    /// # Errors
    /// Any [`CodingError`] but `CutOff`; then the decoder is of no more use.
    pub fn decode(&mut self, packed: &mut Bytes) -> Result<Option<Bytes>, CodingError> {
        loop {
            if packed.is_empty() && !self.more {
                return Ok(None);
            }
            if self.ended && matches!(self.inner, Unpack::Gzip(_)) {
                return Err(CodingError::Trailing);
            }
            let (read, written, ended) = match &mut self.inner {
                Unpack::Zstd(context) => {
                    let mut input = InBuffer::around(packed);
                    let mut output = OutBuffer::around(&mut *self.piece);
                    let wanted = context.decompress_stream(&mut output, &mut input).map_err(unreadable)?;
                    let written = output.pos();
                    (input.pos(), written, wanted == 0)
                }
                Unpack::Gzip(context) => {
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
            self.ended = ended;
            self.more = written == self.piece.len() && !ended;
            if written > 0 {
                return Ok(Some(Bytes::copy_from_slice(&self.piece[..written])));
            }
            if read == 0 && !packed.is_empty() {
                return Err(CodingError::Corrupt(self.coding()));
            }
        }
    }

    /// Whether all was there.
    ///
    /// # Errors
    /// [`CodingError::CutOff`].
    pub fn finish(&self) -> Result<(), CodingError> {
        if self.ended { Ok(()) } else { Err(CodingError::CutOff(self.coding())) }
    }
}

/// Packs what comes in pieces. It holds a few MiB (zstd) or a quarter of one (gzip).
pub struct Encoder(Pack);

enum Pack {
    Zstd(CCtx<'static>),
    Gzip(Compress),
}

/// How far packed bytes are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Convenient,
    AllSoFar,
    End,
}

impl Encoder {
    /// `size`: bytes that will come, where that is known for sure; a small one costs less memory on both sides.
    ///
    /// # Errors
    /// [`CodingError::Failed`].
    pub fn new(coding: Coding, size: Option<u64>) -> Result<Self, CodingError> {
        Ok(Self(match coding {
            Coding::Zstd => {
                let mut context = CCtx::try_create().ok_or(CodingError::Failed(coding, "no memory"))?;
                context.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL)).map_err(failed)?;
                context.set_parameter(CParameter::WindowLog(WINDOW_LOG)).map_err(failed)?;
                context.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
                context.set_pledged_src_size(size).map_err(failed)?;
                Pack::Zstd(context)
            }
            Coding::Gzip => Pack::Gzip(Compress::new_gzip(Compression::new(GZIP_LEVEL), GZIP_WINDOW_LOG)),
        }))
    }

    /// Takes the next piece; gives what is ready, which may be nothing yet.
    ///
    /// # Errors
    /// [`CodingError::Failed`].
    pub fn encode(&mut self, piece: &[u8]) -> Result<Bytes, CodingError> {
        self.run(piece, Until::Convenient)
    }

    /// As [`Encoder::encode`], and gives all that the pieces so far become.
    ///
    /// # Errors
    /// [`CodingError::Failed`].
    pub fn flush(&mut self, piece: &[u8]) -> Result<Bytes, CodingError> {
        self.run(piece, Until::AllSoFar)
    }

    /// Takes the last piece, and gives the rest.
    ///
    /// # Errors
    /// [`CodingError::Failed`].
    pub fn finish(&mut self, piece: &[u8]) -> Result<Bytes, CodingError> {
        self.run(piece, Until::End)
    }

    fn run(&mut self, mut piece: &[u8], until: Until) -> Result<Bytes, CodingError> {
        let mut out = BytesMut::new();
        // As a rule all of it goes into this.
        let mut room = vec![0; (piece.len() / 2 + 512).min(PIECE)];
        loop {
            let (read, written, done) = match &mut self.0 {
                Pack::Zstd(context) => {
                    let directive = match until {
                        Until::Convenient => Directive::ZSTD_e_continue,
                        Until::AllSoFar => Directive::ZSTD_e_flush,
                        Until::End => Directive::ZSTD_e_end,
                    };
                    let mut input = InBuffer::around(piece);
                    let mut output = OutBuffer::around(room.as_mut_slice());
                    let left = context.compress_stream2(&mut output, &mut input, directive).map_err(failed)?;
                    let read = input.pos();
                    let done = read == piece.len() && (until == Until::Convenient || left == 0);
                    (read, output.pos(), done)
                }
                Pack::Gzip(context) => {
                    let flush = match until {
                        Until::Convenient => FlushCompress::None,
                        Until::AllSoFar => FlushCompress::Sync,
                        Until::End => FlushCompress::Finish,
                    };
                    let (read, written) = (context.total_in(), context.total_out());
                    let status = context
                        .compress(piece, &mut room, flush)
                        .map_err(|_| CodingError::Failed(Coding::Gzip, "out of order"))?;
                    let length = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                    let (read, written) = (length(context.total_in() - read), length(context.total_out() - written));
                    let done = match until {
                        Until::End => status == Status::StreamEnd,
                        Until::Convenient | Until::AllSoFar => read == piece.len() && written < room.len(),
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

/// What zstd could not do.
fn failed(code: usize) -> CodingError {
    CodingError::Failed(Coding::Zstd, zstd_safe::get_error_name(code))
}

/// What zstd could not read.
fn unreadable(code: usize) -> CodingError {
    // Errors are the negative numbers of this list, which is part of the library's stable interface.
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
