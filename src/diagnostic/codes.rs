//! How a room that finds faults names their kinds: an enum with one text each.

/// Defines codes once: the variant, and the text that users see and may rely on.
macro_rules! codes {
    ($(#[$about:meta])* $scope:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $scope enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every code, in the order of the documentation.
            #[cfg(test)]
            $scope const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code as it is drawn.
            $scope const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

pub(crate) use codes;
