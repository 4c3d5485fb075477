# What `cmake --install` puts where, the target `uninstall`, and the .deb that `cpack -G DEB` makes of it.

set(doc ${CMAKE_INSTALL_DATADIR}/doc/awex-colocate)
set(manual ${PROJECT_BINARY_DIR}/src/cli)
install(TARGETS awex-colocate RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

# For engines: the library, its header, and what finds them.
include(CMakePackageConfigHelpers)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/awex_colocate)
install(TARGETS awex_colocate_engine EXPORT awex_colocateTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/awex_colocate.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT awex_colocateTargets NAMESPACE awex_colocate:: DESTINATION ${package})
configure_package_config_file(cmake/awex_colocateConfig.cmake.in
  ${PROJECT_BINARY_DIR}/generated/awex_colocateConfig.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/generated/awex_colocateConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/generated/awex_colocateConfig.cmake
              ${PROJECT_BINARY_DIR}/generated/awex_colocateConfigVersion.cmake DESTINATION ${package})
# It finds its prefix from its own place, wherever that is moved to.
file(RELATIVE_PATH AWEX_PREFIX_FROM_PC /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(cmake/awex_colocate.pc.in ${PROJECT_BINARY_DIR}/generated/awex_colocate.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/generated/awex_colocate.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

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
# The project has no address of its own, which .invalid says (RFC 2606): who distributes packages sets DEBEMAIL.
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
# It has a library of its own, which ldconfig and other packages must know.
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_PROJECT_CONFIG_FILE ${PROJECT_SOURCE_DIR}/cmake/PackageVersion.cmake)
set(CPACK_AWEX_BUILD_IDENTITY ${PROJECT_BINARY_DIR}/generated/build_identity.cpp)
set(CPACK_AWEX_SOURCE ${PROJECT_SOURCE_DIR})
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/cmake/DebianFiles.cmake)
include(CPack)
