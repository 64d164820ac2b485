//! Parses values: durations, sizes, paths, names. The errors are sentences without an origin.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

/// Longest device name.
const MAX_DEVICE_BYTES: usize = 32;
/// Longest duration. A century can be added to any clock without overflow.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86_400);

const DURATIONS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// A value of the file, with its TOML type, or of the environment, as text.
#[derive(Clone, Copy)]
pub(super) enum RawValue<'a> {
    Toml(&'a DeValue<'a>),
    Text(&'a str),
}

impl<'a> RawValue<'a> {
    fn wants(self, what: &str) -> String {
        match self {
            Self::Toml(value) => format!("must be {what}, not {}", value.type_str()),
            Self::Text(text) => format!("\"{text}\" is not {what}"),
        }
    }

    /// The text of a number, or the text of the environment.
    fn bare(self) -> Option<&'a str> {
        match self {
            Self::Toml(DeValue::Integer(n)) if n.radix() == 10 => Some(n.as_str()),
            Self::Toml(DeValue::Float(n)) => Some(n.as_str()),
            Self::Text(text) => Some(text),
            Self::Toml(_) => None,
        }
    }

    pub(super) fn text(self) -> Result<&'a str, String> {
        match self {
            Self::Toml(DeValue::String(text)) => Ok(text),
            Self::Text(text) => Ok(text),
            Self::Toml(_) => Err(self.wants("a string in quotes")),
        }
    }

    pub(super) fn flag(self) -> Result<bool, String> {
        match self {
            Self::Toml(DeValue::Boolean(b)) => Ok(*b),
            Self::Text("true" | "1" | "yes") => Ok(true),
            Self::Text("false" | "0" | "no") => Ok(false),
            _ => Err(self.wants("true or false")),
        }
    }

    pub(super) fn count(self, max: usize) -> Result<usize, String> {
        let wanted = || self.wants(&format!("a whole number from 1 to {max}"));
        let n = self.bare().and_then(|t| t.parse().ok()).ok_or_else(wanted)?;
        if (1..=max).contains(&n) { Ok(n) } else { Err(format!("{n} is not from 1 to {max}")) }
    }

    pub(super) fn share(self) -> Result<f64, String> {
        let n: f64 = self.bare().and_then(|t| t.parse().ok()).ok_or_else(|| self.wants("a number such as 0.5"))?;
        if n > 0.0 && n <= 1.0 { Ok(n) } else { Err(format!("{n} is not a share above 0 and up to 1")) }
    }

    /// A duration of at least `least`.
    pub(super) fn duration(self, least: Duration) -> Result<Duration, String> {
        let text = match self {
            Self::Toml(DeValue::Integer(n)) => return Err(format!("{n} has no unit; write \"{n}s\" for seconds")),
            _ => self.text().map_err(|_| self.wants("a duration such as \"30s\""))?,
        };
        let d = parse_duration(text)?;
        if d < least { Err(format!("\"{text}\" is too short; the minimum is {}ms", least.as_millis())) } else { Ok(d) }
    }

    pub(super) fn size(self) -> Result<u64, String> {
        let bytes = match (self, self.bare()) {
            (Self::Toml(DeValue::String(text)), _) => parse_size(text)?,
            (_, Some(text)) => parse_size(text)?,
            _ => return Err(self.wants("a size such as \"64MiB\"")),
        };
        if bytes == 0 { Err("must be more than 0 bytes".to_owned()) } else { Ok(bytes) }
    }

    /// One of `choices`. The error names the nearest.
    pub(super) fn choice<T: Copy>(self, choices: &[(&str, T)]) -> Result<T, String> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let hint = match nearest(text, &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it is one of {}", names.join(", ")),
        };
        Err(format!("unknown value \"{text}\"; {hint}"))
    }

    /// An array of strings. The environment has one string a line.
    pub(super) fn list(self) -> Result<Vec<String>, String> {
        match self {
            Self::Text(text) => Ok(text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()),
            Self::Toml(DeValue::Array(items)) => {
                items.iter().map(|item| RawValue::Toml(item.get_ref()).text().map(str::to_owned)).collect()
            }
            Self::Toml(_) => Err(self.wants("an array of strings")),
        }
    }

    /// An absolute path. Expands `~/`, and removes `.` and `..` without looking at symlinks.
    pub(super) fn path(self, home: Option<&Path>) -> Result<PathBuf, String> {
        let text = self.text()?;
        let path = match (text.strip_prefix('~'), home) {
            (Some(""), Some(home)) => home.to_owned(),
            (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
            (Some(rest), None) if rest.is_empty() || rest.starts_with('/') => {
                return Err(format!("\"{text}\" needs a home folder, and HOME is not set"));
            }
            _ => PathBuf::from(text),
        };
        if !path.is_absolute() {
            return Err(format!("\"{text}\" is not an absolute path; begin it with / or ~/"));
        }
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir => drop(plain.pop()),
                Component::CurDir => {}
                other => plain.push(other),
            }
        }
        Ok(plain)
    }
}

/// Parses a number with a unit, such as `12kB`.
fn scaled(text: &str, what: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    if number.is_empty() {
        return Err(format!("\"{text}\" is not {what}: write a whole number and one of {}", names().join(", ")));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let hint = match nearest(unit, &names()) {
            Some(near) => format!("did you mean \"{number}{near}\"?"),
            None => format!("the units are {}", names().join(", ")),
        };
        let fault = if unit.is_empty() { "no unit".to_owned() } else { format!("an unknown unit \"{unit}\"") };
        return Err(format!("\"{text}\" has {fault}; {hint}"));
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).ok_or_else(|| format!("\"{text}\" is too large"))
}

/// A duration: a whole number and one of `ms`, `s`, `m`, `h`, `d` (24 hours), at most 100 years. The error names the
/// nearest unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let d = Duration::from_millis(scaled(text, "a duration", DURATIONS)?);
    if d > MAX_DURATION { Err(format!("\"{text}\" is too large; the maximum is 36500d")) } else { Ok(d) }
}

/// A size in bytes: a whole number, alone or with `kB`, `MB`, `GB`, `TB` (powers of 1000) or `KiB`, `MiB`, `GiB`, `TiB`
/// (powers of 1024). The error names the nearest unit.
pub fn parse_size(text: &str) -> Result<u64, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("\"{text}\" is too large"));
    }
    scaled(text, "a size", SIZES)
}

/// The device name for a host: its first label, with `-` for characters other than `A-Z a-z 0-9 -`.
pub fn sanitise_device(host: &str) -> String {
    let label = host.split('.').next().unwrap_or_default();
    let mut name = String::new();
    for c in label.chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '-' };
        if name.len() < MAX_DEVICE_BYTES && !(c == '-' && (name.is_empty() || name.ends_with('-'))) {
            name.push(c);
        }
    }
    name.truncate(name.trim_end_matches('-').len());
    if name.is_empty() { "device".to_owned() } else { name }
}

/// Refuses a name that is not safe in a file name.
pub(super) fn check_device(name: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if !name.is_empty() && name.len() <= MAX_DEVICE_BYTES && name.bytes().all(good) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "\"{name}\" is not 1 to {MAX_DEVICE_BYTES} of the letters A-Z a-z 0-9 -; write \"{}\"",
        sanitise_device(&name.replace('.', "-"))
    ))
}

/// The word of `known` with the fewest differences to `word`, if they are few.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let (distance, best) = known.iter().map(|k| (edits(&word, &k.to_ascii_lowercase()), *k)).min_by_key(|(d, _)| *d)?;
    (distance <= best.len().max(word.len()) / 3).then_some(best)
}

/// The Levenshtein distance of two words.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
