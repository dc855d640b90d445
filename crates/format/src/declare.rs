//! One declaration per structure: the bytes, their size, and the table that the documentation shows.

/// A field's name, where it begins, and how many bytes it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in the declaration.
    pub name: &'static str,
    /// Offset from the start of the structure.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

/// A structure that can draw itself.
pub trait Described {
    /// Name, size and fields in order.
    fn describe() -> (&'static str, usize, &'static [Field]);
}

/// Declares a packed little-endian structure, asserts its size, and lists its fields.
macro_rules! on_disk {
    (
        $(#[$doc:meta])*
        pub struct $name:ident [$size:expr] {
            $( $(#[$field_doc:meta])* $field:ident: $kind:ty, )*
        }
    ) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $kind, )*
        }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $crate::declare::Described for $name {
            fn describe() -> (&'static str, usize, &'static [$crate::declare::Field]) {
                const FIELDS: &[$crate::declare::Field] = &[
                    $( $crate::declare::Field {
                        name: stringify!($field),
                        offset: std::mem::offset_of!($name, $field),
                        bytes: size_of::<$kind>(),
                    }, )*
                ];
                (stringify!($name), size_of::<$name>(), FIELDS)
            }
        }
    };
}
