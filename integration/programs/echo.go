// A server without the C library's bind: greets with "echo", and echoes. Usage: echo PORT
package main

import (
	"io"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", ":"+os.Args[1])
	if err != nil {
		os.Exit(1)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			os.Exit(1)
		}
		go func() {
			connection.Write([]byte("echo\n"))
			io.Copy(connection, connection)
			connection.Close()
		}()
	}
}
