# What `cmake --install` puts where, the target `uninstall`, and the .deb that `cpack -G DEB` makes of it.
include(GNUInstallDirs)

set(doc ${CMAKE_INSTALL_DATADIR}/doc/awex-colocate)
set(manual ${PROJECT_BINARY_DIR}/src/cli)
install(TARGETS awex-colocate RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES ${manual}/awex-colocate.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${manual}/awex-colocate.bash RENAME awex-colocate
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${manual}/_awex-colocate DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
install(FILES ${manual}/awex-colocate.fish
        DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
install(FILES README.md CHANGELOG.md LICENSE DESTINATION ${doc})
install(DIRECTORY docs examples DESTINATION ${doc})

# Uninstalls what the last `cmake --install` of this folder has written.
add_custom_target(uninstall
  COMMAND ${CMAKE_COMMAND} -DMANIFEST=${PROJECT_BINARY_DIR}/install_manifest.txt
          -P ${PROJECT_SOURCE_DIR}/cmake/Uninstall.cmake
  VERBATIM)

set(CPACK_PACKAGE_NAME awex-colocate)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "awex-colocate maintainers <maintainers@awex-colocate.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
    OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
"Moves GPU memory and model weights between a trainer and an inference engine
that take turns on the same GPUs: offloads one side, resumes the other,
converts the weights from layout to layout, and proves every byte of them.
Runs under MPI, one rank for each role and GPU.")
# Libraries are found by dpkg-shlibdeps; mpirun is a program.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/cmake/DebianFiles.cmake)
include(CPack)
