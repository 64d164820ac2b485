//! [`SilenceCheck`]: tells a proxy that is gone from one path whose requests are never answered.

use crate::path::RelPath;
use crate::remote::RemoteError;

/// The last unanswered request of this cycle, if no request was answered since. The proxy has given its index in this
/// cycle, so one silent request may be due to its path. Two paths without an answer in between mean that the proxy is gone.
#[derive(Debug, Default)]
pub(super) struct SilenceCheck(Option<SilentRequest>);

#[derive(Debug)]
struct SilentRequest {
    path: RelPath,
    error: RemoteError,
    is_first: bool,
}

impl SilenceCheck {
    pub(super) fn note_answer(&mut self) {
        self.0 = None;
    }

    /// Notes a request without an answer. `is_first`: the path has not failed before. True: the proxy is gone.
    pub(super) fn note_silence(&mut self, path: &RelPath, error: &RemoteError, is_first: bool) -> bool {
        let request = SilentRequest { path: path.clone(), error: error.clone(), is_first };
        self.0.replace(request).is_some_and(|last| last.path != *path)
    }

    /// The error of a silent request that nothing followed. The cycle ends with it, and the next one finds out whether the
    /// proxy is gone. A path that failed before is no news.
    pub(super) fn into_error(self) -> Option<RemoteError> {
        self.0.filter(|request| request.is_first).map(|request| request.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_is_gone_after_two_silent_paths() {
        let (a, b) = (RelPath::parse("a").unwrap(), RelPath::parse("b").unwrap());
        let error = RemoteError::Unreachable { url: "url".to_owned(), why: "why".to_owned() };
        let mut silence = SilenceCheck::default();
        assert!(!silence.note_silence(&a, &error, true) && !silence.note_silence(&a, &error, false));
        assert!(silence.note_silence(&b, &error, true));
        silence.note_answer();
        assert!(!silence.note_silence(&a, &error, true), "an answer came in between");
        assert_eq!(silence.into_error(), Some(error.clone()));
        let mut silence = SilenceCheck::default();
        silence.note_silence(&a, &error, false);
        assert_eq!(silence.into_error(), None, "the path failed before");
    }
}
