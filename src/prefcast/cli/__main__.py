from prefcast.cli import main

main()
