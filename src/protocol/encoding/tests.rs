use super::*;

/// Text like notes: it compresses, but not to nothing.
fn text(size: usize) -> Vec<u8> {
    let words = ["memory", "proxy", "note", "the", "of", "tree", "# ", "\n\n", "agent", "folder", ", ", "wire"];
    let mut random = fastrand::Rng::with_seed(7);
    let mut text = Vec::with_capacity(size + 8);
    while text.len() < size {
        text.extend_from_slice(words[random.usize(..words.len())].as_bytes());
    }
    text.truncate(size);
    text
}

fn noise(size: usize) -> Vec<u8> {
    let mut noise = vec![0; size];
    fastrand::Rng::with_seed(9).fill(&mut noise);
    noise
}

/// Decompresses in pieces of `at_once` bytes.
fn unpack(coding: Coding, packed: &[u8], at_once: usize) -> Result<Vec<u8>, CodingError> {
    let mut decoder = Decoder::new(coding, MAX_WINDOW)?;
    let mut plain = Vec::new();
    for piece in packed.chunks(at_once) {
        let mut piece = Bytes::copy_from_slice(piece);
        while let Some(some) = decoder.decode(&mut piece)? {
            assert!(!some.is_empty() && some.len() <= PIECE);
            plain.extend_from_slice(&some);
        }
        assert!(piece.is_empty());
    }
    decoder.finish().map(|()| plain)
}

fn packed(coding: Coding, plain: &[u8]) -> Bytes {
    Encoder::new(coding, None).and_then(|mut encoder| encoder.finish(plain)).unwrap()
}

#[test]
fn content_round_trips_in_pieces_of_any_size() {
    for coding in Coding::ALL {
        for plain in [text(0), text(1), text(5_000), text(3 * PIECE), noise(2 * PIECE), text(PIECE), vec![0; 5 << 20]] {
            let packed = packed(coding, &plain);
            for at_once in [1, 7, 4_000, 1 << 30] {
                assert_eq!(unpack(coding, &packed, at_once).unwrap(), plain, "{coding} {} {at_once}", plain.len());
            }
            for (at_once, size) in [(1, None), (100, Some(plain.len() as u64)), (70_000, None)] {
                if plain.len() / at_once > 300_000 {
                    continue;
                }
                let mut encoder = Encoder::new(coding, size).unwrap();
                let mut out = Vec::new();
                for (n, piece) in plain.chunks(at_once).enumerate() {
                    let flush = if n % 3 == 1 { Encoder::flush } else { Encoder::encode };
                    out.extend_from_slice(&flush(&mut encoder, piece).unwrap());
                }
                out.extend_from_slice(&encoder.finish(&[]).unwrap());
                assert!(unpack(coding, &out, 1 << 30).unwrap() == plain, "{coding} {} {at_once}", plain.len());
            }
        }
    }
}

#[test]
fn flush_returns_everything_so_far() {
    for coding in Coding::ALL {
        let plain = text(200_000);
        let mut encoder = Encoder::new(coding, None).unwrap();
        let mut packed = encoder.flush(&plain).unwrap();
        let mut decoder = Decoder::new(coding, MAX_WINDOW).unwrap();
        let mut came = Vec::new();
        while let Some(piece) = decoder.decode(&mut packed).unwrap() {
            came.extend_from_slice(&piece);
        }
        assert!(came == plain, "{coding}");
        assert_eq!(decoder.finish(), Err(CodingError::CutOff(coding)));
    }
}

#[test]
fn pack_skips_content_that_does_not_shrink() {
    for coding in Coding::ALL {
        assert_eq!(coding.pack(&text(1023)).unwrap(), None, "{coding}: too small");
        assert_eq!(coding.pack(&noise(100_000)).unwrap(), None, "{coding}");
        let twice = packed(coding, &text(500_000));
        assert_eq!(coding.pack(&twice).unwrap(), None, "{coding}: compressed already");
        let some = coding.pack(&text(2_000)).unwrap().unwrap();
        assert!(some.len() < 1_300, "{coding} {}", some.len());
        assert_eq!(unpack(coding, &some, 100).unwrap(), text(2_000));
    }
}

#[test]
fn decoder_rejects_damaged_content() {
    for coding in Coding::ALL {
        let plain = text(3_000);
        let good = coding.pack(&plain).unwrap().unwrap();
        for cut in 0..good.len() {
            assert_eq!(unpack(coding, &good[..cut], 64), Err(CodingError::CutOff(coding)), "{coding} cut at {cut}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[at] ^= 1 << bit;
                // Some header fields, such as the time, do not affect the content.
                if let Ok(came) = unpack(coding, &bad, 64) {
                    assert!(came == plain, "{coding} {at} {bit}");
                }
            }
        }
        let other = Coding::ALL[1 - coding as usize];
        assert_eq!(unpack(other, &good, 64), Err(CodingError::Corrupt(other)));
        assert_eq!(unpack(coding, &plain, 64), Err(CodingError::Corrupt(coding)));
        let more = [&good[..], b"x"].concat();
        assert!(unpack(coding, &more, 64).is_err() && unpack(coding, &more, 1 << 30).is_err(), "{coding}");
    }
}

#[test]
fn decoder_accepts_zstd_frames_but_one_gzip_member() {
    let (a, b) = (text(10_000), text(2_000));
    let both = |coding| [packed(coding, &a), packed(coding, &b)].concat();
    assert_eq!(unpack(Coding::Zstd, &both(Coding::Zstd), 999).unwrap(), [&a[..], &b].concat());
    assert_eq!(unpack(Coding::Gzip, &both(Coding::Gzip), 999), Err(CodingError::Trailing));
}

#[test]
fn window_is_read_from_zstd_header() {
    let frame = |descriptor: u8, rest: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd, descriptor], rest].concat();
    for (head, bytes) in [
        (frame(0, &[0]), 1024),
        (frame(0, &[10 << 3]), 1 << 20),
        (frame(4, &[(10 << 3) | 3, 9]), (1 << 20) + (3 << 17)),
        (frame(0x20, &[77]), 77),
        (frame(0x60, &[1, 1]), 257 + 256),
        (frame(0xa2, &[9, 9, 1, 0, 0x10, 0]), 0x10_0001),
        (frame(0, &[]), 0),
        (frame(0xe0, &[1, 2, 3]), 0),
        (b"other".to_vec(), 0),
        (vec![], 0),
    ] {
        assert_eq!(window(Coding::Zstd, &head), Ok(bytes), "{head:?}");
    }
    for head in [frame(0, &[(13 << 3) | 1]), frame(0, &[0xff]), frame(0xe0, &[0xff; 8]), frame(0xa0, &[1, 0, 0x80, 0])]
    {
        assert_eq!(window(Coding::Zstd, &head), Err(CodingError::Window), "{head:?}");
        assert_eq!(unpack(Coding::Zstd, &[head, vec![0; 20]].concat(), 3), Err(CodingError::Window));
    }
    // Our own frames ask for the window that they need. A decoder with a smaller limit refuses them.
    let small = packed(Coding::Zstd, &text(3_000));
    assert!(window(Coding::Zstd, &small).unwrap() <= 4096);
    let large = packed(Coding::Zstd, &text(3 << 20));
    assert_eq!(window(Coding::Zstd, &large), Ok(1 << WINDOW_LOG));
    let mut tight = Decoder::new(Coding::Zstd, 4096).unwrap();
    assert_eq!(tight.decode(&mut large.clone()), Err(CodingError::Window));
    assert!(tight.decode(&mut small.clone()).is_err(), "the decoder is unusable after an error");
}

#[test]
fn coding_is_found_by_name() {
    for (name, coding) in [
        ("zstd", Some(Coding::Zstd)),
        ("ZSTD", Some(Coding::Zstd)),
        ("gzip", Some(Coding::Gzip)),
        ("x-gzip", Some(Coding::Gzip)),
        ("deflate", None),
        ("identity", None),
        ("", None),
    ] {
        assert_eq!(Coding::of(name), coding, "{name}");
    }
}
