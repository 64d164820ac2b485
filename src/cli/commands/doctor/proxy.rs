//! The checks of the token, the proxy, its events and its clock.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::check::DoctorCheck;
use crate::cli::exit::Exit;
use crate::cli::probe::{ProbeAnswer, ProbeTarget, ProxyProbe};
use crate::config::Config;
use crate::remote::RemoteError;

/// A larger difference between the clocks is a warning. No decision depends on clocks.
const MAX_SKEW_S: i64 = 300;

/// Checks the token, then asks the proxy. Without a token the proxy is not asked.
pub(super) fn check_proxy(
    config: &Config,
    env: &BTreeMap<String, String>,
    probe: &dyn ProxyProbe,
    now: Timestamp,
) -> Vec<DoctorCheck> {
    let (token, from) = match config.token(env) {
        Ok(found) => found,
        Err(error) => return vec![DoctorCheck::fail_with_error("token", error.to_string()).exit(Exit::Usage)],
    };
    let ca_pem = match config.ca_pem() {
        Ok(ca_pem) => ca_pem,
        Err(error) => return vec![DoctorCheck::fail_with_error("proxy", error.to_string()).exit(Exit::Usage)],
    };
    let answer = probe.ask(&ProbeTarget {
        url: config.proxy.url.clone(),
        // One namespace is enough to try the address and the token.
        namespace: config.folders.first().map(|f| f.namespace.clone()).unwrap_or_default(),
        token,
        ca_pem,
        pin: config.proxy.pin,
        allow_http: config.proxy.allow_http,
        timeout: config.proxy.timeout,
    });
    let mut checks = vec![DoctorCheck::ok("token", format!("from {from}")), check_answer(&config.proxy.url, &answer)];
    if let Ok(answer) = answer {
        let fix = "tell the owner of the proxy";
        checks.extend(answer.warnings.into_iter().map(|warning| DoctorCheck::warn("proxy", warning, fix)));
        checks.extend(answer.events.map(check_push));
        checks.extend(answer.time.map(|time| check_clock(now, time)));
    }
    checks
}

fn check_answer(url: &str, answer: &Result<ProbeAnswer, RemoteError>) -> DoctorCheck {
    match answer {
        Ok(answer) if answer.capabilities.is_empty() => {
            DoctorCheck::ok("proxy", format!("{url} takes the token; it offers the plain protocol"))
        }
        Ok(answer) => {
            DoctorCheck::ok("proxy", format!("{url} takes the token; it offers {}", answer.capabilities.join(", ")))
        }
        Err(error @ RemoteError::Auth { .. }) => {
            DoctorCheck::fail("proxy", error.to_string(), "ask the proxy's owner for a token that is valid")
                .exit(Exit::Refused)
        }
        Err(error @ RemoteError::NotAProxy { .. }) => DoctorCheck::fail_with_error("proxy", error.to_string()),
        Err(error @ RemoteError::Protocol { .. }) => {
            DoctorCheck::fail("proxy", error.to_string(), "check proxy.url: another server answers there")
        }
        Err(error) => {
            DoctorCheck::fail("proxy", error.to_string(), "check proxy.url, the network and that the proxy runs")
                .exit(Exit::Temporary)
        }
    }
}

fn check_push(events: Result<(), String>) -> DoctorCheck {
    match events {
        Ok(()) => DoctorCheck::ok("push", "the proxy reports changes at once"),
        Err(why) => {
            let what = format!("the proxy offers events, but none arrives, so changes are found late: {why}");
            let fix = "let /events through the server in front of the proxy (nginx: `proxy_buffering off`)";
            DoctorCheck::warn("push", what, fix)
        }
    }
}

fn check_clock(now: Timestamp, theirs: Timestamp) -> DoctorCheck {
    let off = now.as_second() - theirs.as_second();
    match off.abs() {
        ..=MAX_SKEW_S => DoctorCheck::ok("clock", "agrees with the proxy's"),
        seconds => {
            let way = if off > 0 { "ahead of" } else { "behind" };
            let what = format!("{seconds} s {way} the proxy's; sync is not affected, but times shown are wrong");
            DoctorCheck::warn("clock", what, "turn on time synchronisation (NTP) on both machines")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::CheckVerdict;
    use super::*;

    struct FixedProbe(Result<ProbeAnswer, RemoteError>);
    impl ProxyProbe for FixedProbe {
        fn ask(&self, _target: &ProbeTarget) -> Result<ProbeAnswer, RemoteError> {
            self.0.clone()
        }
    }

    fn configured() -> Config {
        let mut config = Config::defaults("h");
        config.proxy.url = "https://p".to_owned();
        config.proxy.token = Some("t".to_owned().into());
        config
    }

    fn verdicts(checks: &[DoctorCheck]) -> Vec<(&'static str, CheckVerdict, Exit)> {
        checks.iter().map(|c| (c.name, c.verdict, c.exit)).collect()
    }

    #[test]
    fn check_proxy_judges_each_answer() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ask = |answer| verdicts(&check_proxy(&configured(), &BTreeMap::new(), &FixedProbe(answer), now));
        let token = ("token", CheckVerdict::Ok, Exit::Done);
        let well = ProbeAnswer { capabilities: vec!["events".to_owned()], time: Some(now), ..ProbeAnswer::default() };
        let ok = |name| (name, CheckVerdict::Ok, Exit::Done);
        assert_eq!(ask(Ok(well)), [token, ok("proxy"), ok("clock")]);
        let late = ProbeAnswer { time: Some(Timestamp::from_second(1_800_000_400).unwrap()), ..ProbeAnswer::default() };
        assert_eq!(ask(Ok(late)), [token, ok("proxy"), ("clock", CheckVerdict::Warn, Exit::Done)]);
        let full = ProbeAnswer { warnings: vec!["the disk is nearly full".to_owned()], ..ProbeAnswer::default() };
        assert_eq!(ask(Ok(full)), [token, ok("proxy"), ("proxy", CheckVerdict::Warn, Exit::Done)]);
        let url = || "https://p".to_owned();
        assert_eq!(
            ask(Err(RemoteError::Auth { url: url(), status: 401 })),
            [token, ("proxy", CheckVerdict::Fail, Exit::Refused)]
        );
        assert_eq!(
            ask(Err(RemoteError::Unreachable { url: url(), why: "refused".to_owned() })),
            [token, ("proxy", CheckVerdict::Fail, Exit::Temporary)]
        );
    }

    #[test]
    fn proxy_is_not_asked_without_a_token() {
        struct NeverAsked;
        impl ProxyProbe for NeverAsked {
            fn ask(&self, _target: &ProbeTarget) -> Result<ProbeAnswer, RemoteError> {
                panic!("asked")
            }
        }
        let mut config = configured();
        config.proxy.token = None;
        let checks = check_proxy(&config, &BTreeMap::new(), &NeverAsked, Timestamp::UNIX_EPOCH);
        assert_eq!(verdicts(&checks), [("token", CheckVerdict::Fail, Exit::Usage)]);
        config = configured();
        config.proxy.ca_file = Some("/nonexistent/ca.pem".into());
        let checks = check_proxy(&config, &BTreeMap::new(), &NeverAsked, Timestamp::UNIX_EPOCH);
        assert_eq!(verdicts(&checks), [("proxy", CheckVerdict::Fail, Exit::Usage)]);
    }
}
