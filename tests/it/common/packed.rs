//! Compressed contents: valid ones and bombs.

use std::io::{Read, Write};

use bytes::Bytes;
use memsync::protocol::encoding::{Coding, Decoder, Encoder, MAX_WINDOW};

/// Compresses `plain` with the coding of this name.
pub(crate) fn pack(coding: &str, plain: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(Coding::of(coding).unwrap(), None).unwrap();
    encoder.finish(plain).unwrap().to_vec()
}

/// Decompresses all of `packed`.
pub(crate) fn unpack(coding: &str, packed: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(Coding::of(coding).unwrap(), MAX_WINDOW).unwrap();
    let (mut packed, mut plain) = (Bytes::copy_from_slice(packed), Vec::new());
    while let Some(piece) = decoder.decode(&mut packed).unwrap() {
        plain.extend_from_slice(&piece);
    }
    decoder.finish().unwrap();
    plain
}

/// Decompresses with the system's own program, so that our codec is not only tested against itself. `None`: there is no
/// such program.
pub(crate) fn unpack_elsewhere(coding: &str, packed: &[u8]) -> Option<Vec<u8>> {
    let mut command = std::process::Command::new(coding);
    let command = command.arg("-dc").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().ok()?;
    let (mut stdin, packed) = (child.stdin.take().unwrap(), packed.to_vec());
    let feeding = std::thread::spawn(move || stdin.write_all(&packed));
    let mut plain = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut plain).unwrap();
    feeding.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    Some(plain)
}

/// A zstd frame that decompresses to `size` spaces, 128 KiB for each four bytes. `window`: the logarithm to base 2 of the
/// window size that it demands.
pub(crate) fn zstd_bomb(size: u64, window: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3];
    let block = (128 * 1024_u64).min(1 << window);
    let mut left = size;
    while left > 0 {
        let length = left.min(block);
        left -= length;
        // The head of a block of one repeated byte. The lowest bit marks the last block.
        let head = u32::try_from(length << 3).unwrap() | 1 << 1 | u32::from(left == 0);
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.push(b' ');
    }
    frame
}

/// A gzip stream that decompresses to `size` spaces. It has about a thousandth of that size.
pub(crate) fn gzip_bomb(size: usize) -> Vec<u8> {
    let mut encoder = Encoder::new(Coding::Gzip, None).unwrap();
    let spaces = vec![b' '; 1 << 20];
    let mut bomb = Vec::new();
    for at in (0..size).step_by(spaces.len()) {
        bomb.extend_from_slice(&encoder.encode(&spaces[..spaces.len().min(size - at)]).unwrap());
    }
    bomb.extend_from_slice(&encoder.finish(&[]).unwrap());
    bomb
}

/// Text that compresses about as well as notes do.
pub(crate) fn text(size: usize) -> Vec<u8> {
    let words = ["memory", "proxy", "note", "the", "of", "tree", "# ", "\n\n", "agent", "folder", ", ", "wire"];
    let mut random = fastrand::Rng::with_seed(7);
    let mut text = Vec::with_capacity(size + 8);
    while text.len() < size {
        text.extend_from_slice(words[random.usize(..words.len())].as_bytes());
    }
    text.truncate(size);
    text
}

/// Content that does not compress.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut noise = vec![0; size];
    fastrand::Rng::with_seed(9).fill(&mut noise);
    noise
}
