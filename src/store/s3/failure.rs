//! What S3 says when it fails, for people.

/// What S3 said, in words that name no place: anybody may read them.
pub fn public_message(why: &str) -> &'static str {
    // S3's own word for it stands at the end.
    let code = why.strip_suffix(')').and_then(|rest| rest.rsplit_once('(')).map_or(why, |(_, code)| code);
    match code {
        "NoSuchBucket" => "the S3 bucket is not there",
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => "S3 does not let the proxy into the bucket",
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            "S3 does not take the proxy's keys"
        }
        "RequestTimeTooSkewed" => "S3 refuses the proxy, whose clock is wrong",
        "SlowDown" | "ServiceUnavailable" | "InternalError" => "S3 has trouble of its own",
        _ => "S3 failed or cannot be reached; the proxy's log says more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_public_message() {
        for (why, word) in [
            ("The specified bucket does not exist (NoSuchBucket)", "not there"),
            ("AccessDenied", "into the bucket"),
            ("The key AKID1 is unknown (InvalidAccessKeyId)", "keys"),
            ("Generic S3 error: https://10.0.0.1/notes: connection refused", "reached"),
        ] {
            let told = public_message(why);
            assert!(told.contains(word) && !told.contains("notes") && !told.contains("AKID"), "{why}: {told}");
        }
    }
}
