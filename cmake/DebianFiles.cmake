# Run by CPack on what is about to be packed: what Debian asks of a package beyond what is installed.
set(usr ${CPACK_TEMPORARY_INSTALL_DIRECTORY}/usr)
set(doc ${usr}/share/doc/awex-colocate)

# Libraries come from packages, which the linker finds without a path of the machine that built this.
file(RPATH_REMOVE FILE ${usr}/bin/awex-colocate)

# -n: the same files make the same package.
execute_process(COMMAND gzip -9n ${usr}/share/man/man1/awex-colocate.1 COMMAND_ERROR_IS_FATAL ANY)

file(RENAME ${doc}/CHANGELOG.md ${doc}/changelog)
execute_process(COMMAND gzip -9n ${doc}/changelog COMMAND_ERROR_IS_FATAL ANY)

file(REMOVE ${doc}/LICENSE) # Debian's copy of it is named instead
file(WRITE ${doc}/copyright
"Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: awex-colocate

Files: *
Copyright: the awex-colocate authors
License: Apache-2.0
 On Debian systems, the full text of the Apache License 2.0 is in
 /usr/share/common-licenses/Apache-2.0.
")
