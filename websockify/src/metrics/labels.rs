//! The values of labels. Each set is small and fixed: nothing of them comes from the network.

/// Makes an enum of a set of values, each with its text.
macro_rules! labels {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$meaning])* $value,)+
        }

        impl $name {
            /// All values, in the order of their numbers.
            pub(super) const ALL: &[Self] = &[$(Self::$value,)+];

            /// The text of a value.
            pub(super) fn text(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }
    };
}

labels! {
    /// Why a client did not get what it wanted, before it was a session. The README has these, too.
    Reason {
        /// TLS did not come about, or was of a version that is too old.
        Tls = "tls",
        /// It speaks TLS, and there is no certificate.
        TlsUnavailable = "tls_unavailable",
        /// It does not speak TLS where it has to.
        TlsRequired = "tls_required",
        /// A proxy that is believed does not say, or not clearly, whose connection or request it is.
        Proxy = "proxy",
        /// It did not say in time what it wants.
        Timeout = "timeout",
        /// It is not HTTP, or its upgrade is no good.
        BadRequest = "bad_request",
        /// It speaks another version of WebSocket.
        Version = "version",
        /// It wants neither an upgrade nor to read a file.
        NotUpgrade = "not_upgrade",
        /// There is no such file, or it cannot be read.
        NotFound = "not_found",
        /// The page is of an origin that is not let in.
        Origin = "origin",
        /// An authenticator does not let it in.
        Auth = "auth",
        /// It has no token, or two.
        TokenMissing = "token_missing",
        /// Its token leads nowhere.
        TokenUnknown = "token_unknown",
        /// What has to be asked does not answer.
        Unavailable = "unavailable",
        /// Its address has too many connections.
        TooMany = "too_many",
        /// No more sessions are taken.
        Full = "full",
    }
}

labels! {
    /// What ended a session.
    End {
        /// The client was gone before its target was connected.
        ClientLeft = "left",
        /// The client sent a close frame.
        ClientClosed = "closed",
        /// The client's connection ended without one.
        ClientLost = "lost",
        /// The client answered no ping.
        ClientSilent = "silent",
        /// The client broke the protocol.
        ClientViolation = "violation",
        /// The target could not be connected to.
        TargetUnreachable = "unreachable",
        /// The target closed.
        TargetClosed = "closed",
        /// The target's connection broke.
        TargetLost = "lost",
        /// The bridge was being stopped.
        Stopped = "stopped",
    }
}

impl End {
    /// Whose doing it was, as the log tells it.
    pub(crate) fn closed_by(self) -> &'static str {
        match self {
            Self::ClientLeft
            | Self::ClientClosed
            | Self::ClientLost
            | Self::ClientSilent
            | Self::ClientViolation => "client",
            Self::TargetUnreachable | Self::TargetClosed | Self::TargetLost => "target",
            Self::Stopped => "server",
        }
    }
}

labels! {
    /// What came of connecting to a target.
    Connect {
        /// It is connected.
        Connected = "connected",
        /// Its name has no address.
        Unresolved = "unresolved",
        /// It refused, or there is no way to it.
        Unreachable = "unreachable",
        /// It did not answer in time.
        TimedOut = "timed_out",
        /// TLS with it did not come about.
        Tls = "tls",
        /// The wrapped program did not listen in time, or is gone.
        NotListening = "not_listening",
        /// The client left, or the bridge was stopped.
        Abandoned = "abandoned",
    }
}

labels! {
    /// What came of looking up a token.
    LookUp {
        /// It leads somewhere.
        Found = "found",
        /// It leads nowhere.
        Unknown = "unknown",
        /// That cannot be said just now.
        Unavailable = "unavailable",
    }
}

labels! {
    /// What an authenticator has answered.
    Answer {
        /// The client is let in.
        Allowed = "allowed",
        /// It is not.
        Refused = "refused",
        /// That cannot be said just now.
        Unavailable = "unavailable",
    }
}

labels! {
    /// What the wrapped program does.
    Program {
        /// It does not listen yet, or not just now.
        Starting = "starting",
        /// It listens.
        Listening = "listening",
        /// It has ended, and is not started again.
        Gone = "gone",
    }
}
